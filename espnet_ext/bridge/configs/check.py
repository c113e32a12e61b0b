"""Checks of a training config: its keys and values, then by building its model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from torch import nn

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.configs.signatures import cached_signatures
from espnet_ext.bridge.deployed.variants import rounded_afterwards
from espnet_ext.config.no_effect import no_effect_warnings
from espnet_ext.config.recipe_errors import recipe_problems, section
from espnet_ext.config.training import UNTRAINED, Config
from espnet_ext.errors import UserError, nearest
from espnet_ext.experiment import Experiment
from espnet_ext.methods.chains import part_of, parts_with_chains
from espnet_ext.methods.deploy import deploy, parameter_count, variants
from espnet_ext.methods.nested_layers import NestedWeight
from espnet_ext.methods.registry import METHODS

# Above this ratio of parameters in training to deployed ones, `check` warns.
_LARGE_TRAINING_MODEL = 4


@dataclass(frozen=True)
class Examined:
    """Findings of ``examine``; every entry of the lists is one line.

    Attributes:
        problems: reasons for which a training would refuse the config.
        warnings: settings without effect, and the like.
        model: the training model; None where there is a problem.
        variants: those of the model.
    """

    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    model: nn.Module | None = None
    variants: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters of the training model; 0 without a model."""
        return 0 if self.model is None else parameter_count([self.model])


def examine(experiment: Experiment) -> Examined:
    """Check every key and value of a config; if all are right, build the model too."""
    config = experiment.config
    problems = key_problems(config)
    warnings = no_effect_warnings(config, cached_signatures().method_of(config))
    if problems:
        return Examined(problems, warnings)
    try:
        model = build_model(experiment, experiment.vocabulary)
    except UserError as error:
        return Examined([str(error).removeprefix(f"{config.path}: ")], warnings)
    problems += _optimizer_problems(config.espnet)
    known = variants(model)
    warnings += [*_size_warnings(model), *_group_warnings(model)]
    offered = (*known, *rounded_afterwards(model))
    for name in (experiment.recipe.variant, *(experiment.recipe.variants or ())):
        if name not in (*offered, UNTRAINED):
            problems.append(f"recipe: unknown variant {nearest(name, offered)}")
    return Examined(problems, warnings, model, known)


def _size_warnings(model: nn.Module) -> list[str]:
    """A training model that is many times as large as the deployed model."""
    trained, plain = parameter_count([model]), parameter_count([deploy(model)])
    if trained < _LARGE_TRAINING_MODEL * plain:
        return []
    return [
        f"{trained:,} parameters in training for {plain:,} deployed; a lower ratio trains faster"
    ]


def _group_warnings(model: nn.Module) -> list[str]:
    """Matrices whose rows are no multiple of a family's group."""
    found: Counter[tuple[int, int]] = Counter()
    for _, layer, chain in parts_with_chains(model, "weight"):
        part = part_of(chain, NestedWeight)
        if part is None or not isinstance(layer, nn.Linear) or not isinstance(part[1].per, int):
            continue
        if layer.in_features % part[1].per:
            found[part[1].per, layer.in_features] += 1
    return [
        f"nested: group: {group} does not divide the {inputs} inputs of {count} matrices, which "
        "get a scale for each channel"
        for (group, inputs), count in found.items()
    ]


def refuse_problems(config: Config) -> None:
    """Raise UserError with the first wrong key or value; the model is not built."""
    _refuse(config, key_problems(config))


def checked_model(experiment: Experiment) -> tuple[nn.Module, list[str]]:
    """Return the model that a training would start from, in evaluation mode, and warnings.

    Raises:
        UserError: the first problem of the config.
    """
    found = examine(experiment)
    _refuse(experiment.config, found.problems)
    assert found.model is not None
    return found.model, found.warnings


def _refuse(config: Config, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more: espnet-ext check)" if len(problems) > 1 else ""
        raise UserError(f"{config.path}: {problems[0]}{more}")


def key_problems(config: Config) -> list[str]:
    """Wrong keys and values, one line each, without building anything."""
    found = [*cached_signatures().problems(config), *_method_problems(config)]
    return [*dict.fromkeys(found), *recipe_problems(config)]


def _method_problems(config: Config) -> Iterator[str]:
    """Wrong options of a compression method."""
    for part in ("encoder_conf", "decoder_conf"):
        for name, value in section(config.espnet, part).items():
            if name in METHODS:
                try:
                    METHODS[name].parse(value)
                except (UserError, TypeError, ValueError) as error:
                    yield f"{part}: {name}: {str(error).removeprefix(f'{name}: ')}"


def _optimizer_problems(espnet: dict[str, Any]) -> Iterator[str]:
    """Build the optimizer and the scheduler, which check their options themselves."""
    name = str(espnet.get("optim", "adadelta")).lower()
    try:
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = optim_classes[name]([parameter], **(espnet.get("optim_conf") or {}))
        name = str(espnet.get("scheduler")).lower()
        if name in scheduler_classes:
            scheduler_classes[name](optimizer, **(espnet.get("scheduler_conf") or {}))
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        yield f"{name} refuses its options: {' '.join(str(error).split()) or type(error).__name__}"
