"""What is exported: a deployed Whisper, read from its folder."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet_ext.bridge.bundle import Bundle
from espnet_ext.bridge.decoder import Decoder
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.errors import UserError
from espnet_ext.export.graph import Weight
from espnet_ext.export.whisper_model import Whisper
from espnet_ext.files import PACKED
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import read_member
from espnet_ext.methods.codes import Coded
from espnet_ext.methods.quantise import grouped_integers, integers
from espnet_ext.models.whisper_decoder import DETECT, WhisperDecoder

FLOAT_BITS = 32
_ENCODER, _DECODER = "encoder.stack.model.", "decoder.decoder."
_SPECIAL = re.compile(r"<\|.*\|>")
_LEAST = 1600  # samples of the shortest speech that is encoded
_SMALL = 4096  # numbers of a matrix that is not worth rounding


def read_whisper(bundle: Bundle, decoder: Decoder, bits: int | None) -> Whisper:
    """Read what the graphs of a deployed Whisper need; for the arguments see ``contract_of``.

    Raises:
        UserError: a model whose language is detected, or that attends within chunks, or bits of a
            packed model.
    """
    asr: Any = decoder.model
    stack = getattr(asr.encoder, "base", None)
    if not isinstance(asr.decoder, WhisperDecoder) or not isinstance(stack, WhisperStack):
        raise UserError(f"{bundle.path}: so far only a whole Whisper can be exported")
    if asr.decoder.language == DETECT:
        raise UserError(
            f"{bundle.path}: decoder_conf: language: {DETECT}: export needs one language"
        )
    if stack.chunks is not None and stack.chunks.active(False):
        raise UserError(f"{bundle.path}: attention within chunks cannot be exported so far")
    state = _weights(bundle, asr, bits)
    config = stack.model.config
    layers = len(stack.model.layers), len(asr.decoder.decoder.layers)
    found = Whisper(
        state=state,
        encoder=_ENCODER,
        decoder=_DECODER,
        heads=config.encoder_attention_heads,
        layers=layers,
        mel=np.asarray(stack.extractor.mel_filters, np.float32),
        prompt=tuple(asr.decoder.prompt),
        end=int(asr.decoder.end),
        least=max(_LEAST, asr.encoder.pad_to),
        rows=_text_rows(asr.token_list, state[f"{_DECODER}embed_tokens.weight"]),
    )
    _refuse_others(found, bundle)
    return found


def _weights(bundle: Bundle, asr: Any, bits: int | None) -> dict[str, Weight]:
    """All weights, those of a packed file as integers and codes."""
    if bundle.path.name == PACKED:
        if bits is not None:
            raise UserError(f"{bundle.path} is packed and keeps its bits: leave out --bits")
        return dict(read_member(bundle.path))
    state: dict[str, Weight] = dict(asr.state_dict())
    if bits is None or bits == FLOAT_BITS:
        return state
    for name, weight in asr.named_parameters():
        if weight.dim() > 1 and weight.numel() >= _SMALL and "position" not in name:
            rounded = _rounded(weight.detach(), bits, "embed_tokens" in name)
            state[name] = rounded
            with torch.no_grad():  # what the graphs are compared with
                weight.copy_(rounded.dequantised())
    return state


def _rounded(weight: Tensor, bits: int, table: bool) -> Quantised:
    """A weight with few bits; the table of tokens has 8, with a scale for each token."""
    if table or bits == 8:
        return Quantised(*integers(weight, 8), 8)
    return Quantised(*grouped_integers(weight, bits), bits)


def _text_rows(tokens: Sequence[str], table: Weight) -> tuple[int, ...]:
    """Ids of the tokens that texts consist of; of a table with shared rows those with their own."""
    kept = table.kept if isinstance(table, Coded) else None
    return tuple(
        number
        for number, token in enumerate(tokens)
        if not _SPECIAL.fullmatch(token) and (kept is None or bool(kept[number]))
    )


def _refuse_others(model: Whisper, bundle: Bundle) -> None:
    """Refuse a model with weights that Whisper's graphs have no place for."""
    layer = r"layers\.\d+\.((self_attn|encoder_attn)\.([qkv]|out)_proj|fc[12]|\w*layer_norm)"
    other = r"conv[12]|embed_positions|embed_tokens|layer_norm"
    known = re.compile(
        rf"({re.escape(model.encoder)}|{re.escape(model.decoder)})({layer}|{other})\.(weight|bias)"
    )
    left = sorted(name for name in model.state if not known.fullmatch(name))
    if left:
        raise UserError(
            f"{bundle.path}: {left[0]} and {len(left) - 1} more have no place in Whisper's graphs: "
            "export the form merged, without mimics"
        )


def symbols(tokens: Mapping[int, str] | Sequence[str], rows: Sequence[int]) -> list[str]:
    """The line of each token in tokens.txt: its text with a mark for a blank, or its bytes."""
    found = []
    for row in rows:
        data = bytes(_BYTES[c] for c in tokens[row])
        try:
            text = data.decode("utf-8").replace(" ", "\u2581")
        except UnicodeDecodeError:
            text = ""
        if not text or any(c.isspace() for c in text):
            text = "".join(f"<0x{byte:02X}>" for byte in data)
        found.append(text)
    return found


def _byte_names() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    named = {chr(byte): byte for byte in shown}
    return named | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _byte_names()
