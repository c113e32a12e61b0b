"""Size and cost of a config's model, without training it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.configs.check import refuse_problems
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.deployed.variants import (
    deploy_variant,
    file_bytes,
    rounded_afterwards,
    split_variant,
)
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import footprint, parameter_count, variants
from espnet_ext.methods.nested_precision import compression
from espnet_ext.methods.nested_table import leave_unfitted
from espnet_ext.results.schema import NOT_MEASURED

_SECONDS = 10.0
_WAVES = SpeechInput(16000)


def measure(experiment: Experiment, vocabulary: int | None = None) -> dict[str, Any]:
    """Build and deploy the model of a config with random weights and measure it.

    Args:
        experiment: names the variant.
        vocabulary: size of the token list; default: ``bridge.build.token_count``.

    Returns:
        ``parameters`` of the deployed model and ``training_parameters``, by part; ``bytes`` of
        the deployed file, with ``recipe: huffman`` as many as the weights of now need;
        ``macs_per_second``, see there; of a family's member also ``encoder_compression``, see
        ``nested_precision.compression``.

    Raises:
        UserError: the model does not build or has no such variant.
    """
    model, variant = _sized_model(experiment, vocabulary), experiment.variant
    made = deploy_variant(model, variant)
    return {
        "parameters": footprint(made.module),
        "training_parameters": footprint(model),
        "bytes": file_bytes(made, variant, experiment.recipe.huffman),
        "macs_per_second": macs_per_second(
            made.module, SpeechInput.of(experiment), experiment.feature_width
        ),
    } | encoder_compression(model, made.module, variant)


class VariantSize(NamedTuple):
    """A variant of a model; ``compression`` of its encoder's blocks."""

    name: str
    parameters: int
    bytes: int
    compression: float | None


def variant_sizes(experiment: Experiment) -> Iterator[VariantSize]:
    """Deploy the model of a config, with random weights, as every variant that it has.

    Raises:
        UserError: the config's first problem.
    """
    refuse_problems(experiment.config)
    model = _sized_model(experiment, experiment.vocabulary)
    for name in (*variants(model), *rounded_afterwards(model)):
        made = deploy_variant(model, name)
        ratio = encoder_compression(model, made.module, name).get("encoder_compression")
        size = file_bytes(made, name, experiment.recipe.huffman)
        yield VariantSize(name, parameter_count([made.module]), size, ratio)


def _sized_model(experiment: Experiment, vocabulary: int | None) -> nn.Module:
    """The model of a config with random weights, without what takes long and changes no size."""
    model = build_model(experiment, vocabulary)
    leave_unfitted(model)
    return model


def encoder_compression(model: Any, deployed: Any, variant: str) -> dict[str, float]:
    """The entry ``encoder_compression`` of a family's member; nothing for any other model."""
    if split_variant(variant)[1] is not None:
        return {}
    ratio = compression(model.encoder, deployed.encoder, variant)
    return {} if ratio is None else {"encoder_compression": round(ratio, 4)}


@torch.no_grad()
def macs_per_second(
    model: nn.Module, source: SpeechInput = _WAVES, width: int | None = None
) -> int | str:
    """Multiply-accumulates of encoder and CTC or class output per second of audio, on 10 s of it.

    Matrix products, convolutions and attention are counted, elementwise work, the frontend
    and the decoder are not. "not measured" for a model with a recurrent encoder, whose kernels
    torch does not count.

    Args:
        model: an ESPnet ASR model in evaluation mode.
        source: the model's input.
        width: features per frame, for a model without a frontend.
    """
    parts: dict[str, Any] = {name: getattr(model, name, None) for name in _PARTS}
    encoder = parts["encoder"]
    if encoder is None or any(isinstance(m, nn.RNNBase) for m in encoder.modules()):
        return NOT_MEASURED
    x, lengths = _ten_seconds(parts, source, width)
    with FlopCounterMode(display=False, custom_mapping=MORE_FLOPS) as counter:
        if parts["preencoder"] is not None:
            x, lengths = parts["preencoder"](x, lengths)
        conditioned = getattr(encoder, "interctc_use_conditioning", False)
        extra = {"ctc": parts["ctc"]} if conditioned else {}
        x, lengths, _ = encoder(x, lengths, **extra)
        x = x[0] if isinstance(x, tuple) else x
        if parts["postencoder"] is not None:
            x, lengths = parts["postencoder"](x, lengths)
        if parts["ctc"] is not None:
            parts["ctc"].log_softmax(x)
        if is_classifier(model):
            model.decoder(x, lengths)
    return round(counter.get_total_flops() / 2 / _SECONDS)


def is_classifier(model: nn.Module) -> bool:
    """True for ESPnet's classification model, whose decoder is a head over all frames."""
    return hasattr(model, "classification_type")


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **more: Any) -> int:
    """FLOPs of attention in one kernel; the arguments are shapes (batch, heads, time, width)."""
    return sdpa_flop_count(query, key, value)


# The one of CPUs, which torch does not count.
MORE_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
_PARTS = ("frontend", "normalize", "preencoder", "encoder", "postencoder", "ctc")


def _ten_seconds(
    parts: dict[str, Any], source: SpeechInput, width: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (1, frames, width) of noise, and their length, before the pre-encoder."""
    # A separate generator: measuring must not change later random numbers.
    noise = torch.Generator().manual_seed(0)
    if parts["frontend"] is not None:
        wave = torch.randn(1, int(_SECONDS * source.rate), generator=noise) * 0.1
        x, lengths = parts["frontend"](wave, torch.tensor([wave.shape[1]]))
    elif width is None:
        raise ValueError("a model without a frontend needs the width of its features")
    else:
        frames = int(_SECONDS * source.frames_per_second)
        x = torch.randn(1, frames, width, generator=noise)
        lengths = torch.tensor([frames])
    if parts["normalize"] is not None:
        x, lengths = parts["normalize"](x, lengths)
    return x.float(), lengths
