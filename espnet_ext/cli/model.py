"""The model that a verb uses: a deployed or an exported one, or that of a training config."""

import argparse
from pathlib import Path

from espnet_ext.config.training import is_config
from espnet_ext.errors import UserError, at_least
from espnet_ext.export.runtime.decoder import SETTINGS, load_exported, refuse_options
from espnet_ext.recogniser import Recogniser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and the options with which ``open_recogniser`` opens it."""
    parser.add_argument("model", help="deployed or exported folder, file of weights, or config")
    parser.add_argument(
        "--variant", help="variant to use, where MODEL is a config or an exported family"
    )
    parser.add_argument("--method", help="decoding method; default: the config's first")
    parser.add_argument(
        "--beam", type=at_least(1), help="texts that a Whisper or transducer extends at each step"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU (default: cpu)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads (default: 1)")


def model_folder(model: str, variant: str | None) -> Path:
    """The path of a model to use: what was given, or the deployed model of a training config.

    Raises:
        UserError: a variant of something that is no config or exported folder, or one that is
            not deployed.
    """
    path = Path(model)
    if is_config(path):
        from espnet_ext.experiment import Experiment

        return Experiment.load(model, None, variant).require_deployed()
    if variant and not is_exported(path):
        raise UserError(
            "--variant needs a config or an exported family; give the folder of the variant itself"
        )
    return path


def is_exported(model: Path) -> bool:
    """True of a folder that ``espnet-ext export`` wrote."""
    return (model / SETTINGS).is_file()


def open_recogniser(
    args: argparse.Namespace,
    model: Path,
    max_bytes: int | None = None,
    max_rtf: float | None = None,
) -> Recogniser:
    """Open a model with the options of ``add_model``; torch is imported for a deployed one only.

    Raises:
        UserError: no such model, none that fits, or options that an exported one does not have.
    """
    if is_exported(model):
        refuse_options(model, args.device, args.method, max_rtf)
        return load_exported(model, args.threads, args.variant, max_bytes, args.beam)
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

        from espnet_ext.bridge.decoding.loading import load
    torch.set_num_threads(args.threads)
    return load(model, args.device, max_bytes, args.method, max_rtf, args.beam)
