"""ESPnet's model from a config alone: no data, no token list, no statistics."""

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet_ext.bridge.registry import TASKS, install
from espnet_ext.config.pretrained import PRETRAINED, require_token_source
from espnet_ext.config.recipe_errors import section
from espnet_ext.data.tokenizer import listed, source_files
from espnet_ext.encoders.pretrained.load import without_missing_model
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.formats.building import bounded
from espnet_ext.models.whisper_decoder import placeholder_tokens

install()

# Size of a token list of English characters where none has been made yet: 26 letters,
# apostrophe, space, blank, unknown, sos/eos.
CHARACTERS = 31
_MOST_SIZE = 10_000_000  # of a layer, a list or a rate; more is a slip
_BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ArithmeticError,  # attention_heads: 0
    IndexError,
    MemoryError,
    RecursionError,
)


def build_model(experiment: Experiment, vocabulary: int | None = None) -> nn.Module:
    """Build the model that a training of the config would start from, in evaluation mode.

    The state of torch's random generator is left as it was.

    Args:
        experiment: the config.
        vocabulary: tokens, blank and sos/eos (cls: <unk>) included; default: ``token_count``.

    Returns:
        ESPnet's model of the config's task; global statistics are neutral (mean 0, variance 1).

    Raises:
        UserError: ESPnet refuses the config.
    """
    for key, value in experiment.espnet.items():
        _refuse_absurd(f"{experiment.config.path}: the model does not build: {key}", value)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        try:
            args = arguments_of(experiment)
            args.token_list = _placeholders(experiment, vocabulary or token_count(experiment))
            args.init_param = []
            if args.normalize == "global_mvn":
                args.normalize_conf = dict(args.normalize_conf)
                width = _width(experiment, args)
                args.normalize_conf["stats_file"] = neutral_statistics(width, Path(folder))
            args.encoder_conf = without_missing_model(args.encoder_conf)
            args.decoder_conf = without_missing_model(args.decoder_conf)
            with bounded(*_most()):
                return TASKS[experiment.recipe.task].build_model(args).eval()
        except UserError as error:
            raise UserError(f"{experiment.config.path}: {error}") from None
        except _BUILD_ERRORS as error:
            reason = " ".join(str(error).split()) or _source_line(error)
            name = type(error).__name__
            raise UserError(
                f"{experiment.config.path}: the model does not build: {name}: {reason}"
            ) from None


def _refuse_absurd(where: str, value: Any) -> None:
    """Raise UserError if a whole number in a section is too large for a size of a model."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, int) and abs(inner) > _MOST_SIZE:
                raise UserError(f"{where}: {key} is {inner}, at most {_MOST_SIZE}")
            _refuse_absurd(f"{where}: {key}", inner)


def _most() -> tuple[int, str]:
    """The numbers that the memory of this machine holds as float32, and a reason to stop there."""
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return held // 4, f"the model does not build: over {held / 1e9:.0f} GB, or too many layers"


def token_count(experiment: Experiment) -> int:
    """Tokens of the list that stage 3 makes; for characters the size of an English list.

    A classifier's list ends in <unk>, which is no class. SentencePiece counts <unk>, <s> and
    </s> among its pieces; the list has <blank>, <unk> and
    <sos/eos> instead, so its size is that of the vocabulary.
    """
    recipe = experiment.recipe
    if recipe.task == "cls":
        return recipe.classes + 1
    kind = experiment.config.token_type
    if kind == PRETRAINED:
        return _pretrained_count(experiment)
    return CHARACTERS if kind == "char" else recipe.vocabulary


def _pretrained_count(experiment: Experiment) -> int:
    """Tokens of a pretrained model; where it has not been fetched, what the config says."""
    source = experiment.root / require_token_source(experiment.config)
    if (source / "config.json").is_file():
        return len(listed(*source_files(str(source))))
    conf = section(section(experiment.espnet, "decoder_conf"), "architecture")
    return conf.get("vocab_size", CHARACTERS)


def arguments_of(experiment: Experiment) -> argparse.Namespace:
    """ESPnet's arguments, filled by its parser."""
    parser = TASKS[experiment.recipe.task].get_parser()
    parser.set_defaults(**experiment.espnet)
    try:
        args = parser.parse_args([])
    except SystemExit:
        raise ValueError("ESPnet's parser refuses a value") from None
    args.input_size = experiment.feature_width
    return args


def _placeholders(experiment: Experiment, count: int) -> list[str]:
    if experiment.recipe.task == "cls":
        return [*(f"<{k}>" for k in range(count - 1)), "<unk>"]
    if experiment.config.token_type == PRETRAINED:
        if experiment.token_list.is_file():
            return experiment.token_list.read_text(encoding="utf-8").splitlines()
        named = placeholder_tokens(experiment.espnet)
        return [*(f"<{k}>" for k in range(count - len(named))), *named]
    return ["<blank>", "<unk>", *(f"<{k}>" for k in range(2, count - 1)), "<sos/eos>"]


def _width(experiment: Experiment, args: argparse.Namespace) -> int:
    """Features per frame before normalisation."""
    if args.input_size is not None:
        return args.input_size
    choices = {c.name: c for c in TASKS[experiment.recipe.task].class_choices_list}
    frontend: Any = choices["frontend"].get_class(args.frontend)
    return frontend(**args.frontend_conf).output_size()


def with_statistics(
    arguments: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
) -> dict[str, Any]:
    """Return a config that builds a model whose ``state`` has the statistics of its features.

    ESPnet reads a file whenever it builds a normalisation: one is written into ``folder``.
    """
    mean = state.get("normalize.mean")
    if mean is None:
        return dict(arguments)
    conf = arguments.get("normalize_conf")
    conf = conf if isinstance(conf, dict) else {}
    path = neutral_statistics(len(mean), folder)
    return {**arguments, "normalize_conf": {**conf, "stats_file": path}}


def neutral_statistics(width: int, folder: Path) -> str:
    """Write statistics of mean 0 and variance 1, types as ESPnet's collect_stats writes them.

    Returns:
        Path of the file.
    """
    path = folder / "feats_stats.npz"
    sums = np.zeros(width, np.float32)
    np.savez(path, count=1, sum=sums, sum_square=sums + 1)
    return str(path)


def _source_line(error: BaseException) -> str:
    """The line of source that raised, for an assertion without a message."""
    import traceback

    return traceback.extract_tb(error.__traceback__)[-1].line or "no reason given"
