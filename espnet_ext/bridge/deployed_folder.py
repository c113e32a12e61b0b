"""Stage 5's work: training form to a stock ESPnet model on disk, verified on real speech."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from espnet_ext.bridge.checkpoint import (
    build,
    deployed_bytes,
    load_model,
    load_weights,
    read_config,
    write,
)
from espnet_ext.bridge.footprint import encoder_compression, is_classifier, macs_per_second
from espnet_ext.bridge.registry import stock_encoder
from espnet_ext.bridge.variants import computing, formed, split_variant
from espnet_ext.data.fbank import kaldi_fbank
from espnet_ext.data.features import FRAMES_PER_SECOND
from espnet_ext.encoders.family_outputs import plain_conf
from espnet_ext.encoders.kaldi_fbank import KaldiFbank
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.mimicked import MimickedStack
from espnet_ext.errors import UserError
from espnet_ext.files import PACKED, atomic_path, weights_file, write_json
from espnet_ext.formats.packed import write_member
from espnet_ext.methods.deploy import PLAIN, footprint
from espnet_ext.methods.registry import METHODS

STACK = "stack"  # the encoder's stack in its family's own format, without removed layers
TOLERANCE = 1e-5  # float32, absolute, on the encoder's normalised outputs or the logits


def deploy_checkpoint(
    config: Path,
    checkpoint: Path,
    variant: str,
    waves: list[Tensor],
    rate: int,
    folder: Path,
    deltas: int = 0,
    frames: float = FRAMES_PER_SECOND,
) -> dict[str, Any]:
    """Write ``folder`` with model.pth, config.yaml, feats_stats.npz and deploy.json.

    The folder appears only if everything holds: the deployed model read back from disk has
    the keys and shapes that stock ESPnet builds, and the output of the training form. A member of
    a family at 8, 4 or 2 bits is packed: model.safetensors in the place of model.pth.

    Args:
        config: the experiment's config.yaml.
        checkpoint: the averaged model.
        variant: name of the deployed form.
        waves: real utterances for the verification: each (samples,) in [-1, 1], or features
            (frames, width) that are not computed here.
        rate: their samples per second.
        folder: where to write.
        deltas: orders of differences in the features that the deployed model takes.
        frames: how many of them there are in a second.

    Returns:
        The contents of deploy.json.
    """
    trained = load_model(config, checkpoint)
    deployed, packed = formed(trained, variant)
    arguments = stock_arguments(read_config(config), split_variant(variant)[0])
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        if packed is None:
            write(deployed_bytes(deployed, variant), temporary / "model.pth")
        else:
            write_member(packed, temporary / PACKED)
        # The config names the statistics where they will be, and is built from where they are.
        statistics = (arguments.get("normalize_conf") or {}).get("stats_file")
        if statistics is not None:
            shutil.copyfile(statistics, temporary / "feats_stats.npz")
            arguments["normalize_conf"]["stats_file"] = str(folder / "feats_stats.npz")
        if isinstance(deployed.encoder, StackEncoder):
            if packed is not None or isinstance(deployed.encoder.stack, MimickedStack):
                arguments = portable_arguments(arguments, deployed)
            else:
                deployed.encoder.stack.save(temporary / STACK)
                conf = stack_options(arguments["encoder_conf"], folder / STACK)
                arguments["encoder_conf"] = conf
        text = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        rounded = split_variant(variant)[1] is not None  # then the training form is another
        forms = [deployed] if rounded else [trained, deployed]
        with computing(trained, "merged" if rounded else variant):
            verified = verify(forms, temporary, arguments, waves, rate, deltas)
        summary = {
            "variant": variant,
            "checkpoint": str(checkpoint),
            "parameters": footprint(deployed),
            "training_parameters": footprint(trained),
            "bytes": weights_file(temporary).stat().st_size,
            "macs_per_second": macs_per_second(deployed, rate, arguments.get("input_size"), frames),
            "verified": verified,
        } | encoder_compression(trained, deployed, variant)
        write_json(temporary / "deploy.json", summary)
    return summary


def stock_arguments(arguments: dict[str, Any], variant: str = "merged") -> dict[str, Any]:
    """Turn a training config into one that builds the deployed form.

    For ``merged`` and members of a family that is the plain encoder, which stock ESPnet builds if
    it is one of its own; another form keeps the method, whose option ``form`` names it. The Kaldi
    frontend is ours and has no weights: the deployed model takes its features.
    """
    arguments = dict(arguments)
    conf = dict(arguments.get("encoder_conf") or {})
    if conf.get("nested") is not None:
        conf = plain_conf(conf, variant)
        if "nested" not in conf:
            arguments["encoder"] = stock_encoder(arguments["encoder"])
    elif variant in ("merged", PLAIN):
        arguments["encoder"] = stock_encoder(arguments["encoder"])
        for method in METHODS:
            conf.pop(method, None)
    else:
        for method in METHODS.keys() & conf.keys():
            conf[method] = {**(conf[method] or {}), "form": variant}
    arguments["encoder_conf"] = conf
    arguments["init_param"] = []
    if arguments.get("frontend") == "kaldi_fbank":
        frontend = KaldiFbank(**(arguments.get("frontend_conf") or {}))
        arguments["input_size"] = frontend.output_size()
        arguments["frontend"] = None
        arguments["frontend_conf"] = {}
    arguments["init"] = None
    return arguments


def portable_arguments(arguments: dict[str, Any], deployed: nn.Module) -> dict[str, Any]:
    """``stock_arguments`` that build a deployed model where no file of a pretrained one is."""
    if not isinstance(deployed.encoder, StackEncoder):
        return arguments
    return {**arguments, "encoder_conf": deployed.encoder.portable_conf(arguments["encoder_conf"])}


def stack_options(conf: dict[str, Any], path: Path) -> dict[str, Any]:
    """Options of ``encoder: stack`` that build the deployed form from the folder beside it."""
    gone = ("remove", "keep", "architecture")
    kept = {key: value for key, value in conf.items() if key not in gone}
    return {**kept, "path": str(path)}


@torch.no_grad()
def verify(
    forms: Sequence[nn.Module],
    folder: Path,
    arguments: dict[str, Any],
    waves: list[Tensor],
    rate: int,
    deltas: int = 0,
) -> dict[str, Any]:
    """Compare the files in ``folder`` with ``forms`` of the model on real speech.

    Raises:
        UserError: another architecture than stock ESPnet's, or outputs further apart than
            TOLERANCE.
    """
    local = dict(arguments)
    if (folder / STACK).exists():
        local["encoder_conf"] = {**arguments["encoder_conf"], "path": str(folder / STACK)}
    if (folder / "feats_stats.npz").exists():
        conf = dict(arguments["normalize_conf"], stats_file=str(folder / "feats_stats.npz"))
        local["normalize_conf"] = conf
    stock = build(local).eval()
    load_weights(stock, weights_file(folder))
    difference = 0.0
    width = arguments.get("input_size")
    for wave in waves:
        written = encode(stock, wave, rate, width, deltas)
        for form in forms:
            other = encode(form, wave, rate, width, deltas)
            difference = max(difference, (written - other).abs().max().item())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the deployed model differs from the training form by {difference:.1e} "
            f"(limit {TOLERANCE:.0e}); nothing was written"
        )
    return {"utterances": len(waves), "max_difference": difference, "tolerance": TOLERANCE}


def encode(model: nn.Module, wave: Tensor, rate: int, width: int | None, deltas: int = 0) -> Tensor:
    """Encoder output (1, frames, width) for one wave; of a classifier its logits (1, classes).

    In place of a wave features (frames, width) may be given.
    A model without a frontend takes ``width`` features a frame, log-mel and ``deltas`` orders of
    differences: ours, whatever made the training's arks.
    """
    if model.frontend is None and width is not None and wave.dim() == 1:
        wave = kaldi_fbank(wave, rate, width // (1 + deltas), deltas)
    # A copy: ESPnet's normalisation writes into what it is given.
    output, lengths = model.encode(wave.unsqueeze(0).clone(), torch.tensor([len(wave)]))
    if isinstance(output, tuple):
        output = output[0]
    return model.decoder(output, lengths) if is_classifier(model) else output
