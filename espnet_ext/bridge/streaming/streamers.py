"""The streamer of a model: attention with two passes, or a transducer."""

from typing import Any

from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.streaming.attention import AttentionStreamer
from espnet_ext.bridge.streaming.transducer import TransducerStreamer
from espnet_ext.config.decoding import ATTENTION_GREEDY, TRANSDUCER
from espnet_ext.errors import UserError


def streamer_of(
    bundle: Bundle, method: str | None = None
) -> TransducerStreamer | AttentionStreamer:
    """Build the streamer of a model that was read.

    Args:
        bundle: the model.
        method: of a transducer; None: the first that the bundle names, else greedy.

    Raises:
        UserError: the model cannot stream, or not by that method.
    """
    if bundle.source.deltas or bundle.source.layers or bundle.source.from_arks:
        raise UserError(
            f"{bundle.path}: features with deltas (frontend_conf: deltas), or of another model, "
            "cannot stream"
        )
    attention = bundle.arguments.get("decoder") == "whisper"
    if attention and method not in (None, ATTENTION_GREEDY):
        raise UserError(f"{bundle.path}: {method} cannot stream; this model has attention_greedy")
    chosen = method_of(bundle, method)
    options: dict[str, Any] = dict(bundle.methods.get(chosen) or {})
    if attention:
        return AttentionStreamer(bundle, options, bundle.source.rate)
    return TransducerStreamer(bundle, chosen, options, bundle.source)


def method_of(bundle: Bundle, method: str | None) -> str:
    """The decoding method of a stream."""
    if bundle.arguments.get("decoder") == "whisper":
        return ATTENTION_GREEDY
    return method or next((m for m in bundle.methods if m in TRANSDUCER), TRANSDUCER[0])
