"""ESPnet's attention decoders as graphs, traced by torch: sherpa-onnx's ``from_moonshine``.

    preprocess       audio (1, n) -> x (1, frames, features)
    encode           x -> keys and values of all cross-attentions
    uncached_decode  the runtime's first token -> the first states; it has no weights
    cached_decode    a token and the states -> scores of the next token, new states

Ids of the runtime: 0 unknown, 1 its start, 2 its end, 3 the model's start, text from 4 on. What
``encode`` gives is reshaped to more and shorter rows: the runtime ends a text by their number.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import PositionalEncoding
from torch import Tensor, nn

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.errors import UserError
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.traced.rounded import use_integers
from espnet_ext.export.traced.tracing import sinusoids, trace, trace_features, traceable
from espnet_ext.export.whisper.model import END, PROMPT, TEXT
from espnet_ext.export.whisper.moonshine import ENCODE, FIRST, NEXT

_FRAMES = 150  # of the input that is traced
_NEVER = -1e9  # score of an id that the model has no token for
_ROWS = 7  # for each frame, at least: the runtime allows 0.144 tokens a row


class Encode(nn.Module):
    """Normalisation, encoder, and keys and values of each layer of the decoder."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr = asr
        width = 2 * len(asr.decoder.decoders) * asr.encoder.output_size()
        self.rows = next(n for n in range(_ROWS, width + 1) if width % n == 0)

    def forward(self, x: Tensor, features_len: Tensor) -> Tensor:
        """Encode features (1, T, features) to (1, frames x rows, 2 L D / rows)."""
        # Not that of the runtime, which counts what is not time.
        length = (x[0, :, 0] * 0 + 1).sum().long().reshape(1) + 0 * features_len.long()
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), length)
        encoded, _, _ = self.asr.encoder(x, length)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        layers = [layer.src_attn for layer in self.asr.decoder.decoders]
        parts = [a.linear_k(encoded) for a in layers] + [a.linear_v(encoded) for a in layers]
        whole = torch.cat(parts, -1)
        return whole.reshape(1, -1, whole.shape[-1] // self.rows)


class First(nn.Module):
    """Scores that choose the model's start, and the states before it."""

    def __init__(self, asr: Any, rows: int, count: int):
        super().__init__()
        self.layers, self.rows = len(asr.decoder.decoders), rows
        attention = asr.decoder.decoders[0].src_attn
        self.heads, self.size = attention.h, attention.d_k
        self.register_buffer("scores", torch.zeros(1, 1, count))
        self.scores[0, 0, PROMPT] = 1

    def forward(self, token: Tensor, encoder_out: Tensor, seq_len: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (2 L, heads, frames, size), and no token (L + 1, 0, D)."""
        whole = encoder_out.reshape(-1, 2 * self.layers, self.heads, self.size)
        unused = 0 * (token.sum() + seq_len.sum()).float()
        nothing = torch.zeros(self.layers + 1, 0, self.heads * self.size)
        return self.scores + unused, whole.permute(1, 2, 0, 3), nothing + unused


class Next(nn.Module):
    """One step of the decoder: ESPnet's layers, with the keys and values of ``Encode``."""

    def __init__(self, asr: Any, ids: list[int]):
        super().__init__()
        self.decoder, self.layers = asr.decoder, len(asr.decoder.decoders)
        self.embedding, position = asr.decoder.embed
        self.scale, self.width = position.xscale, position.d_model
        self.register_buffer("ids", torch.tensor(ids))
        forbidden = torch.zeros(len(ids))
        forbidden[[place for place in range(TEXT) if place != END]] = _NEVER
        self.register_buffer("forbidden", forbidden)

    def forward(
        self, token: Tensor, encoder_out: Tensor, seq_len: Tensor, cross: Tensor, past: Tensor
    ) -> tuple[Tensor, ...]:
        """Scores (1, 1, V) of the token after ``token`` (1, 1), and the states with it."""
        position = sinusoids((past[0, :, 0] * 0 + 1).sum().reshape(1), self.width)
        x = self.embedding(self.ids[token.long()]) * self.scale + position
        x = torch.cat([past[:1], x], 1)
        kept = [x]
        for number, layer in enumerate(self.decoder.decoders):
            known = cross[number], cross[self.layers + number]
            x = self._layer(layer, x, past[number + 1 : number + 2], known)
            kept.append(x)
        y = x[:, -1:]
        y = self.decoder.after_norm(y) if self.decoder.normalize_before else y
        scores = self.decoder.output_layer(y)[..., self.ids] + self.forbidden
        unused = 0 * (encoder_out[0, 0, 0] + seq_len.sum())
        return scores + unused, cross + 0, torch.cat(kept)

    def _layer(self, layer: Any, x: Tensor, past: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
        """ESPnet's layer, whose cross-attention finds keys and values computed."""
        attention = layer.src_attn
        layer.src_attn = _Known(attention, *known)
        try:
            return layer(x, None, x, None, cache=past)[0]
        finally:
            layer.src_attn = attention


class _Known(nn.Module):
    """ESPnet's attention to keys and values (heads, frames, size)."""

    def __init__(self, attention: Any, key: Tensor, value: Tensor):
        super().__init__()
        self.attention, self.known = attention, (key, value)

    def forward(self, query: Tensor, *_: Any) -> Tensor:
        """Attend from (1, 1, D)."""
        attention, (key, value) = self.attention, self.known
        q = attention.linear_q(query).view(1, -1, attention.h, attention.d_k).transpose(1, 2)
        scores = q @ key.transpose(-2, -1).unsqueeze(0) / math.sqrt(attention.d_k)
        return attention.forward_attention(value.unsqueeze(0), scores, None)


def write(
    decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
) -> dict[int, int]:
    """Write the four graphs; for arguments, result and errors see ``frames.write``."""
    asr = decoder.model
    refuse(decoder)
    ids = token_ids(asr)
    encode = Encode(asr).eval()
    first, following = First(asr, encode.rows, len(ids)).eval(), Next(asr, ids).eval()
    counted = use_integers(asr, state, products)
    following.embedding = asr.decoder.embed[0]
    width = trace_features(decoder, folder)
    x, length = torch.randn(1, _FRAMES, width), torch.tensor([_FRAMES], dtype=torch.int32)
    with traceable(asr), torch.no_grad():
        inputs = {"x": {1: "frames"}, "features_len": {}}
        trace(encode, (x, length), folder / ENCODE, inputs, {"encoder_out": {1: "rows"}})
        encoded = encode(x, length)
    token = torch.tensor([[PROMPT]], dtype=torch.int32)
    given = token, encoded, torch.tensor([encoded.shape[1]], dtype=torch.int32)
    inputs = {"token": {}, "encoder_out": {1: "rows"}, "seq_len": {}}
    names = {"cross": {2: "time"}, "past": {1: "known"}}
    trace(first, given, folder / FIRST, inputs, {"logits": {}, **names})
    _, cross, _ = first(*given)
    past = torch.randn(len(asr.decoder.decoders) + 1, 3, cross.shape[1] * cross.shape[3])
    outputs = {"logits": {}, "new_cross": {2: "time"}, "new_past": {1: "more"}}
    trace(following, (*given, cross, past), folder / NEXT, {**inputs, **names}, outputs)
    return dict(counted)


def token_ids(asr: Any) -> list[int]:
    """The model's token of each id of the runtime; the blank has none, and the unknown no text."""
    special = {asr.blank_id, asr.sos, asr.eos}
    unknown = asr.token_list.index("<unk>") if "<unk>" in asr.token_list else asr.eos
    text = [n for n in range(len(asr.token_list)) if n not in special | {unknown}]
    return [unknown, asr.sos, asr.eos, asr.sos, *text]


def refuse(decoder: Decoder) -> None:
    """Raise UserError for a model that the graphs do not hold."""
    asr = decoder.model
    name = decoder.inference.asr_train_args.decoder
    if not isinstance(asr.decoder, TransformerDecoder) or asr.decoder.output_layer is None:
        raise UserError(f"decoder {name}: of ESPnet's only transformer is exported")
    if type(asr.decoder.embed[1]) is not PositionalEncoding or len(asr.decoder.embed) != 2:
        raise UserError("decoder_conf: only input_layer: embed with plain positions is exported")
    if any(not isinstance(a.src_attn.q_norm, nn.Identity) for a in asr.decoder.decoders):
        raise UserError("decoder_conf: qk_norm is not exported")
