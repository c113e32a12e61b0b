"""Writes deployed models: folders that stock ESPnet loads, verified on real speech."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import espnet2
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
from espnet_ext.bridge.configs.footprint import encoder_compression, is_classifier, macs_per_second
from espnet_ext.bridge.deployed.bundle import FEATURES, KEY, about
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.deployed.variants import computing, deploy_variant, split_variant
from espnet_ext.bridge.registry import stock_encoder, task_of
from espnet_ext.config.training import UNTRAINED
from espnet_ext.data.ssl_model import SSLModel
from espnet_ext.encoders.family_outputs import plain_conf, plain_decoder_conf
from espnet_ext.encoders.frontends import KaldiFbank
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.features import save_model
from espnet_ext.encoders.pretrained.mimicked import MimickedStack
from espnet_ext.experiment import Experiment
from espnet_ext.files import DEPLOYED, PACKED, atomic_path, weights_file, write_json
from espnet_ext.formats import digests
from espnet_ext.formats.packed import write_member
from espnet_ext.formats.portable import gather
from espnet_ext.methods.deploy import PLAIN, deploy, footprint
from espnet_ext.methods.registry import METHODS
from espnet_ext.methods.verify import TOLERANCE, largest_difference, refuse_difference
from espnet_ext.models.teacher import Teacher
from espnet_ext.models.whisper_decoder import WhisperDecoder

STACK = "stack"  # folder of the encoder's stack in its family's format, without removed layers
_TOKENS = 8  # of the text that a decoder is verified on
_FEATURES = ("frontend", "specaug", "normalize", "preencoder")  # parts that make an encoder's input


@dataclass(frozen=True)
class Speech:
    """Real utterances that a deployed model is verified on.

    Attributes:
        waves: each (samples,) in [-1, 1], or features (frames, width) that are read from arks.
        source: how they become the model's input.
    """

    waves: Sequence[Tensor]
    source: SpeechInput

    @torch.no_grad()
    def outputs(self, model: nn.Module, width: int | None) -> list[Tensor]:
        """The output of a model for each utterance.

        Args:
            model: ESPnet's.
            width: features of a frame, for a model without a frontend.

        Returns:
            Encoder outputs (1, frames, width); of a classifier logits (1, classes).
        """
        width = width if model.frontend is None else None
        return [encode(model, self.source.prepared(wave, width)) for wave in self.waves]


def encode(model: Any, speech: Tensor) -> Tensor:
    """The output of a model for one utterance; see ``Speech.outputs``."""
    # A copy: ESPnet's normalisation writes into its argument.
    output, lengths = model.encode(speech.unsqueeze(0).clone(), torch.tensor([len(speech)]))
    if isinstance(output, tuple):
        output = output[0]
    return model.decoder(output, lengths) if is_classifier(model) else output


def deploy_experiment(experiment: Experiment, checkpoint: Path, speech: Speech) -> dict[str, Any]:
    """Write the deployed model of an experiment: model.pth, config.yaml, statistics, deploy.json.

    The folder appears only if everything holds: the deployed model read back from disk has
    the keys and shapes that stock ESPnet builds, and the output of the training model. A member
    of a family at fewer than 32 bits is packed: model.safetensors instead of model.pth.

    Args:
        experiment: names the variant and the folder.
        checkpoint: the averaged model.
        speech: utterances for the verification.

    Returns:
        The content of deploy.json.

    Raises:
        UserError: an unknown variant, a checkpoint that does not fit, or outputs that differ.
    """
    variant, folder = experiment.variant, experiment.deployed
    arguments = read_config(experiment.espnet_config)
    if variant == UNTRAINED:
        arguments = untrained_arguments(arguments, experiment.recipe.untrained or {})
        trained = build(arguments).eval()
        deployed, packed, unrounded = deploy(trained), None, "merged"
    else:
        trained = load_model(experiment.espnet_config, checkpoint)
        deployed, packed = deploy_variant(trained, variant)
        unrounded = split_variant(variant)[0]
    if isinstance(getattr(deployed, "teacher", None), Teacher):
        deployed.teacher = None
    arguments = stock_arguments(arguments, unrounded)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        if packed is None:
            write(deployed_bytes(deployed, variant), temporary / "model.pth")
        else:
            write_member(packed, temporary / PACKED, experiment.recipe.huffman)
        if packed is None:
            _save_stack(arguments, deployed, temporary)
        if isinstance(experiment.features, SSLModel):
            save_model(experiment.features, temporary / FEATURES)
        arguments = portable_arguments(arguments, deployed) | {
            KEY: about(experiment, speech.source)
        }
        text = yaml.safe_dump(gather(arguments, temporary), sort_keys=False, allow_unicode=True)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        _write_meta(arguments, temporary)
        rounded = split_variant(variant)[1] is not None  # then the training model differs
        with computing(trained, "merged" if rounded else variant):
            models = [deployed] if rounded else [trained, deployed]
            verified = verify(models, temporary, arguments, speech)
        summary = {
            "variant": variant,
            "checkpoint": checkpoint.name,
            "parameters": footprint(deployed),
            "training_parameters": footprint(trained),
            "bytes": weights_file(temporary).stat().st_size,
            "macs_per_second": macs_per_second(
                deployed, speech.source, arguments.get("input_size")
            ),
            "verified": verified,
            digests.KEY: digests.digests(temporary),
        } | encoder_compression(trained, deployed, variant)
        write_json(temporary / DEPLOYED, summary)
    return summary


def _write_meta(arguments: Mapping[str, Any], folder: Path) -> None:
    """Write the meta.yaml that makes an archive of the folder one of ESPnet's models."""
    task = "classification" if task_of(arguments) == "cls" else "asr"
    meta = {
        "yaml_files": {f"{task}_train_config": "config.yaml"},
        "files": {f"{task}_model_file": weights_file(folder).name},
        "espnet": espnet2.__version__,
        "torch": str(torch.__version__),
    }
    (folder / "meta.yaml").write_text(yaml.safe_dump(meta, sort_keys=False), encoding="utf-8")


def untrained_arguments(arguments: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the pretrained model that a training starts from.

    Args:
        arguments: the config of the training.
        over: keys of ``encoder_conf`` that differ.
    """
    changed = {*METHODS, "mimic", "remove", "keep", "repeat"}
    found = dict(arguments)
    for part in ("encoder_conf", "decoder_conf"):
        conf = arguments.get(part) or {}
        found[part] = {key: value for key, value in conf.items() if key not in changed}
    found["encoder_conf"] |= over
    return found


def _save_stack(arguments: dict[str, Any], deployed: Any, folder: Path) -> None:
    """Save the stack of an encoder in its family's format, if it has that, for other configs."""
    if not isinstance(deployed.encoder, StackEncoder):
        return
    keeps_method = METHODS.keys() & arguments["encoder_conf"].keys()
    if not keeps_method and not isinstance(deployed.encoder.stack, MimickedStack):
        deployed.encoder.stack.save(folder / STACK)


def _decoder_conf(arguments: dict[str, Any], deployed: Any) -> Any:
    """Return ``decoder_conf`` without the files of a pretrained model."""
    conf: Any = arguments.get("decoder_conf")
    decoder = deployed.decoder
    return decoder.portable_conf(conf) if isinstance(decoder, WhisperDecoder) else conf


def stock_arguments(arguments: dict[str, Any], variant: str = "merged") -> dict[str, Any]:
    """Turn a training config into one that builds a variant.

    For ``merged`` and members of a family that is the plain encoder, which stock ESPnet builds if
    the encoder is ESPnet's; another variant keeps the method, whose option ``form`` names it. The
    Kaldi frontend is ours and has no weights: the deployed model reads its features.
    """
    arguments = dict(arguments)
    conf = dict(arguments.get("encoder_conf") or {})
    decoder = arguments.get("decoder_conf") or {}
    if conf.get("nested") is not None:
        arguments["decoder_conf"] = plain_decoder_conf(decoder, variant)
        conf = plain_conf(conf, variant)
        if "nested" not in conf:
            arguments["encoder"] = _encoder_of(arguments["encoder"], conf)
    else:
        if "decoder_conf" in arguments:
            arguments["decoder_conf"] = _of_variant(decoder, variant)
        conf = _of_variant(conf, variant, named=arguments["encoder"].partition("_")[0])
        arguments["encoder"] = _encoder_of(arguments["encoder"], conf)
    arguments["encoder_conf"] = conf
    arguments["init_param"] = []
    if "model_conf" in arguments:
        model = arguments["model_conf"]
        arguments["model_conf"] = {k: v for k, v in model.items() if not k.startswith("teacher")}
    if arguments.get("frontend") == "kaldi_fbank":
        frontend = KaldiFbank(**(arguments.get("frontend_conf") or {}))
        arguments["input_size"] = frontend.output_size()
        arguments["frontend"] = None
        arguments["frontend_conf"] = {}
    arguments["init"] = None
    return arguments


def _encoder_of(encoder: str, conf: Mapping[str, Any]) -> str:
    """The encoder of a variant: stock, or that of the method which ``conf`` keeps."""
    stock = stock_encoder(encoder)
    kept = [name for name in METHODS if name in conf]
    return f"{kept[0]}_{stock}" if kept and stock != "stack" else stock


def _of_variant(conf: Mapping[str, Any], variant: str, named: str = "") -> dict[str, Any]:
    """A section of a config for a variant, which keeps a method only if it has that variant.

    A section that is null is no method, but for the one ``named`` by the encoder: of
    residual_conformer it means the defaults.
    """
    found = {key: value for key, value in conf.items() if key not in METHODS}
    if variant not in ("merged", PLAIN):
        for method in METHODS.keys() & conf.keys():
            has_form = "form" in METHODS[method].options.model_fields
            if has_form and (conf[method] is not None or method == named):
                found[method] = {**(conf[method] or {}), "form": variant}
    return found


def portable_arguments(arguments: dict[str, Any], deployed: Any) -> dict[str, Any]:
    """``stock_arguments`` that build a deployed model without the files of a pretrained one."""
    arguments = {**arguments, "decoder_conf": _decoder_conf(arguments, deployed)}
    if not isinstance(deployed.encoder, StackEncoder):
        return arguments
    return {**arguments, "encoder_conf": deployed.encoder.portable_conf(arguments["encoder_conf"])}


def verify(
    models: Sequence[nn.Module], folder: Path, arguments: dict[str, Any], speech: Speech
) -> dict[str, Any]:
    """Compare the files in ``folder`` with ``models`` on real speech.

    They are compared in float32; where that is too coarse, in float64. Deep networks with large
    inner values turn the rounding of float32 into more than TOLERANCE where two models compute the
    same in another order: a base and a residual, or their sum.

    Raises:
        UserError: another architecture than stock ESPnet's, or outputs that differ by more than
            TOLERANCE, on the encoder's normalised outputs, the logits or a pretrained decoder's
            probabilities.
    """
    stock = build(read_config(folder / "config.yaml")).eval()
    load_weights(stock, weights_file(folder))
    width = arguments.get("input_size")
    difference, computed_in = _difference(stock, models, speech, width), "float32"
    if difference > TOLERANCE:
        wide, *others = (_in_float64(one) for one in (stock, *models))
        difference, computed_in = _difference(wide, others, speech, width), "float64"
    refuse_difference(difference, f"in {computed_in} the deployed model")
    return {
        "utterances": len(speech.waves),
        "max_difference": difference,
        "tolerance": TOLERANCE,
        "computed_in": computed_in,
    }


def _difference(
    written: nn.Module, models: Sequence[nn.Module], speech: Speech, width: int | None
) -> float:
    """The largest difference of a model from others."""
    found = _compared(written, speech, width)
    return max(largest_difference(found, _compared(one, speech, width)) for one in models)


def _in_float64(model: nn.Module) -> nn.Module:
    """A copy that computes in float64 from its features on, which are the same."""

    def cast(_encoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one.double() if one.is_floating_point() else one for one in inputs)

    wide: Any = copy.deepcopy(model)
    for name, part in wide.named_children():
        if name not in _FEATURES:
            part.double()
    wide.encoder.register_forward_pre_hook(cast)
    return wide


@torch.no_grad()
def _compared(model: Any, speech: Speech, width: int | None) -> list[Tensor]:
    """Outputs for each utterance, and after a pretrained decoder the probabilities of tokens."""
    found = speech.outputs(model, width)
    if not isinstance(model.decoder, WhisperDecoder):
        return found
    tokens = torch.linspace(0, model.vocab_size - 1, _TOKENS).long().unsqueeze(0)
    count = torch.tensor([_TOKENS])
    scores = [
        model.decoder(encoded, torch.tensor([encoded.shape[1]]), tokens, count)[0]
        for encoded in found
    ]
    return [*found, *(each.softmax(-1) for each in scores)]
