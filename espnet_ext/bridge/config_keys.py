"""Compares a training config with ESPnet's options and the constructors that it chooses."""

import inspect
import types
import typing
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr_transducer.activation import get_activation
from espnet2.layers.create_adapter import create_adapter_fn_table
from espnet2.optimizers.optim_groups import add_optimizer_hooks
from espnet2.tasks import asr
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.utils.nested_dict_action import NestedDictAction
from typeguard import TypeCheckError, check_type

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.registry import BASES, RECURRENT_BASES, TASKS, install, stock_encoder
from espnet_ext.bridge.variants import rounded_afterwards
from espnet_ext.config.recipe_errors import is_int, is_number, recipe_problems, warnings_of
from espnet_ext.config.training import Config, Recipe, resolve_includes
from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.deploy import parameter_count, variants
from espnet_ext.methods.registry import METHODS

install()

# What ESPnet passes to the constructors itself.
_GIVEN = {
    "self",
    *("input_size", "vocab_size", "encoder_output_size", "odim", "stats_file"),
    *("token_list", "frontend", "specaug", "normalize", "preencoder", "encoder", "postencoder"),
    *("decoder", "ctc", "joint_network", "params", "optimizer", "model"),
}
_GIVEN_TO_JOINER = {"self", "output_size", "encoder_size", "decoder_size", "activation_type"}
_GIVEN_TO_PREPROCESSOR = {"train", "token_type", "bpemodel", "text_cleaner", "g2p_type"}
_NAMED: tuple[str, ...] = (
    "frontend",
    "specaug",
    "normalize",
    "model",
    "preencoder",
    "encoder",
    "postencoder",
)
_NAMED += ("decoder", "preprocessor")


@dataclass(frozen=True)
class Examined:
    """What ``examine`` found in a config; every entry of the lists is one line."""

    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    parameters: int = 0  # of the training form
    variants: tuple[str, ...] = ()


def checked(config: Config) -> list[str]:
    """Return what is wrong in ``config``, one line each; empty if ``train`` would accept it."""
    return examine(config).problems


def examine(config: Config) -> Examined:
    """Compare every key with what takes it; if all are right, build the model too."""
    problems = key_problems(config)
    method = _method(config)
    warnings = warnings_of(config, method)
    if problems:
        return Examined(problems, warnings)
    try:
        model = build_model(config)
    except UserError as error:
        return Examined([str(error).removeprefix(f"{config.path}: ")], warnings)
    problems += _optimizer_problems(config.espnet)
    known = variants(model)
    if config.recipe.variant not in (*known, *rounded_afterwards(model)):
        problems.append(f"recipe: unknown variant {nearest(config.recipe.variant, known)}")
    return Examined(problems, warnings, parameter_count([model]), known)


def examine_file(path: Path) -> Examined:
    """Read a config and examine it; what ``load_config`` would raise is a problem here."""
    try:
        merged = resolve_includes(path)
    except UserError as error:
        return Examined([str(error).removeprefix(f"{path.resolve()}: ")])
    section = merged.pop("recipe", None) or {}
    if not isinstance(section, dict):
        return Examined([f"recipe: expected keys and values, not {section!r}"])
    known = {f.name for f in fields(Recipe)}
    unknown = [
        f"unknown key in recipe: {nearest(str(k), known)}" for k in section if k not in known
    ]
    recipe = Recipe(**{k: v for k, v in section.items() if k in known})
    found = examine(Config(path, path.stem.removeprefix("train_"), recipe, merged))
    return Examined(unknown + found.problems, found.warnings, found.parameters, found.variants)


def refuse_problems(config: Config) -> None:
    """Raise UserError with the first wrong key or value; the model is not built."""
    problems = key_problems(config)
    if problems:
        more = f" (and {len(problems) - 1} more: espnet-ext check)" if len(problems) > 1 else ""
        raise UserError(f"{config.path}: {problems[0]}{more}")


def refuse_unbuildable(config: Config) -> None:
    """Raise UserError with the first problem that ``examine`` finds: what training needs."""
    problems = checked(config)
    if problems:
        more = f" (and {len(problems) - 1} more: espnet-ext check)" if len(problems) > 1 else ""
        raise UserError(f"{config.path}: {problems[0]}{more}")


def key_problems(config: Config) -> list[str]:
    """Wrong keys and values, one line each, without building anything."""
    if str(config.recipe.task) not in TASKS:
        return [f"recipe: unknown task {nearest(str(config.recipe.task), TASKS)}"]
    return [*_option_problems(config), *_section_problems(config), *recipe_problems(config)]


def _method(config: Config) -> str | None:
    """Name of the compression method of the config's encoder, if it has one."""
    encoder = str(config.espnet.get("encoder", "")).lower()
    base = stock_encoder(encoder)
    return None if base == encoder else encoder.removesuffix(f"_{base}")


def _option_problems(config: Config) -> Iterator[str]:
    """Top-level keys against ESPnet's parser."""
    espnet = config.espnet
    actions = {a.dest: a for a in TASKS[config.recipe.task].get_parser()._actions}
    for ours in ("help", "config", "print_config"):
        del actions[ours]
    for key, value in espnet.items():
        if key not in actions:
            yield f"unknown key {nearest(str(key), [*actions, 'include', 'recipe'])}"
            continue
        action = actions[key]
        reason = _bad_value(action, value)
        if reason:
            yield f"{key}: {reason}"
        elif action.choices is not None:
            chosen = _parsed(action.type, value)
            known = [c for c in action.choices if c is not None]
            if chosen is None and None in action.choices:
                continue
            if not isinstance(chosen, str) or chosen not in known:
                yield f"unknown {key} {nearest(str(chosen), known)}"


def _bad_value(action: Any, value: Any) -> str | None:
    """Why ``value`` cannot be that of a command-line option, else None."""
    if isinstance(action, NestedDictAction):
        wrong = not isinstance(value, dict) and not (value is None and action.default is None)
        return f"expected keys and values, not {value!r}" if wrong else None
    if action.nargs is not None or isinstance(action.default, list):
        return None if isinstance(value, list) else f"expected a list, not {value!r}"
    if isinstance(value, list | dict):
        return f"expected one value, not {value!r}"
    kind = getattr(action.type, "__name__", "")
    if isinstance(value, str):
        try:
            _parsed(action.type, value)
        except (ValueError, TypeError) as error:
            hint = _number_hint(value)
            return hint or f"{value!r} is not a value of this option ({error})"
        return None
    if value is None:
        optional = kind.endswith("_or_none") or action.default is None or kind == "<lambda>"
        return None if optional else "needs a value"
    if kind.startswith("int") and not is_int(value):
        return f"expected a whole number, not {value!r}"
    if kind.startswith("float") and not is_number(value):
        return f"expected a number, not {value!r}"
    if kind == "str2bool" and not isinstance(value, bool):
        return f"expected true or false, not {value!r}"
    if action.choices is not None and not isinstance(value, str):
        return f"expected a name, not {value!r}"
    return None


def _parsed(kind: Any, value: Any) -> Any:
    return kind(value) if isinstance(value, str) and kind is not None else value


def _section_problems(config: Config) -> Iterator[str]:
    """Keys and values of every ``<x>_conf`` against the constructor chosen for <x>."""
    for key, constructor, owner in _constructors(config):
        conf = config.espnet.get(key)
        if not isinstance(conf, dict):
            continue  # told already, or absent
        parameters = _parameters(constructor)
        if key == "preprocessor_conf":
            parameters = {n: p for n, p in parameters.items() if n not in _GIVEN_TO_PREPROCESSOR}
        for name, value in conf.items():
            if name in METHODS and name in parameters:
                yield from _method_problems(key, name, value)
            elif name in METHODS:
                base = stock_encoder(owner)
                fit = METHODS[name].fits(base, base in RECURRENT_BASES)
                known = METHODS[name].bases or BASES
                hint = f"{name}_{base}" if fit else " or ".join(f"{name}_{b}" for b in known)
                yield f"{key}: {owner} takes no {name}; did you mean encoder: {hint}?"
            elif name == "stats_file" and owner == "global_mvn":
                continue  # a warning: training gives it
            elif name not in parameters and _is_open(constructor):
                continue
            elif name not in parameters:
                yield f"{key}: unknown key of {owner} {nearest(str(name), parameters)}"
            elif reason := _bad_argument(parameters[name], value):
                yield f"{key}: {name}: {reason}"


def _constructors(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield (section, class or function that takes it, name chosen), where known."""
    espnet = config.espnet
    choices = {c.name: c for c in TASKS[config.recipe.task].class_choices_list}
    for name in _NAMED:
        if name not in choices:
            continue
        chosen = espnet.get(name, choices[name].default)
        found = choices[name].classes.get(str(chosen).lower())
        if found is not None:
            yield f"{name}_conf", found, str(chosen).lower()
    tables: dict[str, tuple[dict, Any]] = {
        "optim": (optim_classes, "adadelta"),
        "scheduler": (scheduler_classes, None),
        "adapter": (create_adapter_fn_table, "lora"),
    }
    for name, (table, default) in tables.items():
        chosen = str(espnet.get(name, default)).lower()
        if chosen in table:
            yield f"{name}_conf", table[chosen], chosen
    yield "exclude_weight_decay_conf", add_optimizer_hooks, "exclude_weight_decay"
    if config.recipe.task == "cls":
        return
    yield "ctc_conf", CTC, "CTC"
    if espnet.get("decoder") == "transducer":
        yield "joint_net_conf", _joint_network(), "the joint network"


def _joint_network() -> Any:
    """Something with the parameters of the joiner and of the activation that its ** go to."""
    owners = (asr.JointNetwork.__init__, get_activation)
    found = {n: p for owner in owners for n, p in inspect.signature(owner).parameters.items()}
    own = [
        p.replace(kind=p.KEYWORD_ONLY)
        for name, p in found.items()
        if p.kind != p.VAR_KEYWORD and name not in _GIVEN_TO_JOINER
    ]

    def joint_network() -> None:
        raise NotImplementedError

    joint_network.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return joint_network


def _optimizer_problems(espnet: dict[str, Any]) -> Iterator[str]:
    """Build optimizer and scheduler around one parameter: their own checks of their values."""
    try:
        parameter = torch.nn.Parameter(torch.zeros(1))
        name = str(espnet.get("optim", "adadelta")).lower()
        optimizer = optim_classes[name]([parameter], **(espnet.get("optim_conf") or {}))
        name = str(espnet.get("scheduler")).lower()
        if name in scheduler_classes:
            scheduler_classes[name](optimizer, **(espnet.get("scheduler_conf") or {}))
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        yield f"{name} refuses its options: {' '.join(str(error).split()) or type(error).__name__}"


def _parameters(constructor: Any) -> dict[str, inspect.Parameter]:
    """Parameters that a config may set; those of the bases too where ** passes them on."""
    found: dict[str, inspect.Parameter] = {}
    for owner in _chain(constructor):
        for name, parameter in inspect.signature(owner).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    return {name: p for name, p in found.items() if name not in _GIVEN}


def _chain(constructor: Any) -> Iterator[Any]:
    """``constructor``, then the bases that its ``**`` reaches."""
    for owner in (
        inspect.getmro(constructor)[:-1] if inspect.isclass(constructor) else [constructor]
    ):
        yield owner
        if not _takes_any(owner):
            return


def _takes_any(owner: Any) -> bool:
    return any(p.kind == p.VAR_KEYWORD for p in inspect.signature(owner).parameters.values())


def _is_open(constructor: Any) -> bool:
    """True if any key is taken: ``**`` that no base class resolves."""
    return _takes_any(list(_chain(constructor))[-1])


def _method_problems(key: str, name: str, value: Any) -> Iterator[str]:
    try:
        METHODS[name].parse(value)
    except (UserError, TypeError, ValueError) as error:
        yield f"{key}: {name}: {error}"


def _bad_argument(parameter: inspect.Parameter, value: Any) -> str | None:
    """Why ``value`` is obviously not one for ``parameter``, else None."""
    annotation = parameter.annotation
    if _is_simple(annotation):
        try:
            check_type(value, annotation)
        except TypeCheckError:
            hint = _number_hint(value)
            return hint or f"expected {inspect.formatannotation(annotation)}, not {value!r}"
        return None
    default = parameter.default
    if isinstance(default, bool) and not isinstance(value, bool):
        return f"expected true or false, not {value!r}"
    if is_number(default) and isinstance(value, str):
        return _number_hint(value) or f"expected a number, not {value!r}"
    return None


def _is_simple(annotation: Any) -> bool:
    """True for plain types, lists of them and their unions: what YAML can hold."""
    if annotation in (bool, int, float, str, None, type(None)):
        return True
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, list, abc.Sequence):
        return all(map(_is_simple, typing.get_args(annotation)))
    return False


def _number_hint(value: Any) -> str | None:
    """YAML 1.1 reads 1e-3 as text, a common trap."""
    if not isinstance(value, str):
        return None
    try:
        float(value)
    except ValueError:
        return None
    if "e" not in value.lower():
        return f"expected a number, not the text {value!r}"
    mantissa, _, exponent = value.lower().partition("e")
    pointed = mantissa if "." in mantissa else f"{mantissa}.0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"YAML reads {value} as text; write {pointed}e{sign}{exponent}"
