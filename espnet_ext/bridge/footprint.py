"""What a config's model weighs and costs, without training it."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from espnet_ext.bridge.build import build_model, feature_width
from espnet_ext.bridge.variants import file_bytes, formed, split_variant
from espnet_ext.config.training import Config
from espnet_ext.data.features import FRAMES_PER_SECOND, ark_definition, frames_per_second
from espnet_ext.methods.deploy import footprint
from espnet_ext.methods.nested import compression
from espnet_ext.results.schema import NOT_MEASURED

_SECONDS = 10.0


def measure(config: Config, variant: str | None = None, vocabulary: int | None = None) -> dict:
    """Build and deploy the model of ``config`` with random weights and measure it.

    Args:
        config: training config.
        variant: deployed form; default: the one the config names.
        vocabulary: size of the token list; default: ``build.token_count``.

    Returns:
        ``parameters`` of the deployed form and ``training_parameters``, by part; ``bytes`` of
        the deployed file; ``macs_per_second``, see there; of a family's member also
        ``encoder_compression``, see ``nested.compression``.

    Raises:
        UserError: the model does not build or has no such variant.
    """
    model = build_model(config, vocabulary)
    variant = variant or config.recipe.variant
    form = formed(model, variant)
    deployed = form.module
    found = {
        "parameters": footprint(deployed),
        "training_parameters": footprint(model),
        "bytes": file_bytes(form, variant),
        "macs_per_second": macs_per_second(
            deployed, sampling_rate(config), feature_width(config), frames_per_second(config)
        ),
    }
    return found | encoder_compression(model, deployed, variant)


def encoder_compression(model: Any, deployed: Any, variant: str) -> dict[str, float]:
    """The entry ``encoder_compression`` of a family's member; nothing for any other model."""
    if split_variant(variant)[1] is not None:
        return {}
    ratio = compression(model.encoder, deployed.encoder, variant)
    return {} if ratio is None else {"encoder_compression": round(ratio, 4)}


def sampling_rate(config: Config) -> int:
    """Samples per second that the frontend expects."""
    import humanfriendly

    if config.espnet.get("frontend") == "ssl":
        return ark_definition(config).rate

    rate = (config.espnet.get("frontend_conf") or {}).get("fs", 16000)
    return humanfriendly.parse_size(rate) if isinstance(rate, str) else int(rate)


@torch.no_grad()
def macs_per_second(
    model: nn.Module,
    rate: int = 16000,
    width: int | None = None,
    frames: float = FRAMES_PER_SECOND,
) -> int | str:
    """Multiply-accumulates of encoder and CTC or class output per second of audio, on 10 s of it.

    Matrix products, convolutions and attention are counted, elementwise work, the frontend
    and the decoder are not. "not measured" for a model with a recurrent encoder, whose kernels
    torch does not count.

    Args:
        model: an ESPnet ASR model in evaluation mode.
        rate: samples per second of audio.
        width: features per frame, for a model without a frontend.
        frames: frames per second of such features.
    """
    parts: dict[str, Any] = {name: getattr(model, name, None) for name in _PARTS}
    encoder = parts["encoder"]
    if encoder is None or any(isinstance(m, nn.RNNBase) for m in encoder.modules()):
        return NOT_MEASURED
    x, lengths = _ten_seconds(parts, rate, width, frames)
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
    parts: dict[str, Any], rate: int, width: int | None, frames_per_second: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (1, frames, width) of noise, and their length, before the pre-encoder."""
    # A generator of its own: measuring must not change the numbers of what follows.
    noise = torch.Generator().manual_seed(0)
    if parts["frontend"] is not None:
        wave = torch.randn(1, int(_SECONDS * rate), generator=noise) * 0.1
        x, lengths = parts["frontend"](wave, torch.tensor([wave.shape[1]]))
    elif width is None:
        raise ValueError("a model without a frontend needs the width of its features")
    else:
        frames = int(_SECONDS * frames_per_second)
        x = torch.randn(1, frames, width, generator=noise)
        lengths = torch.tensor([frames])
    if parts["normalize"] is not None:
        x, lengths = parts["normalize"](x, lengths)
    return x.float(), lengths
