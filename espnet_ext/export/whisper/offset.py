"""Whisper as graphs that sherpa-onnx runs as ``from_whisper``.

    preprocess  audio (1, n) -> log-mel (1, bins, time); for transcribe.py, sherpa-onnx needs none
    encoder     log-mel -> keys (L, heads, size, frames) and values of all cross-attentions
    decoder     tokens (1, n) after ``offset`` others, caches -> scores of the next token, caches

Ids: texts from 0 on, the end, the prompt. Of the caches the first ``offset`` places are read; the
runtime's first ones have another shape. Frames of zeros, which it appends, are cut off.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.export.graphs.graph import FLOAT, INT64, Graph
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.whisper.encoder import keys_values
from espnet_ext.export.whisper.mel import write_log_mel
from espnet_ext.export.whisper.model import Whisper
from espnet_ext.export.whisper.moonshine import (
    CROSS,
    NEVER,
    PREPROCESS,
    SELF,
    Shapes,
    decode,
    split_cross,
)
from espnet_ext.export.whisper.source import token_bytes

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
_CROSS = dict(zip(CROSS, ("n_layer_cross_k", "n_layer_cross_v"), strict=True))
_SELF = dict(zip(SELF, ("n_layer_self_k_cache", "n_layer_self_v_cache"), strict=True))
_BLANK = b" "


def write(
    model: Whisper, folder: Path, products: Products, texts: Sequence[bytes], places: int
) -> dict[int, int]:
    """Write the graphs into a folder.

    Args:
        model: that detects no language.
        folder: that exists.
        products: see ``Graph``.
        texts: of the ids.
        places: of tokens that there are positions for.

    Returns:
        How many weights are stored in how many bits.
    """
    write_log_mel(folder / PREPROCESS, model.mel, model.least)
    described = _described(model, texts, places)
    encoder = _write_encoder(model, folder / ENCODER, products, described)
    decoder = _write_decoder(model, folder / DECODER, products)
    return dict(encoder.rounded + decoder.rounded)


def texts_of(tokens: Sequence[str], rows: Sequence[int]) -> list[bytes]:
    """The bytes of each text."""
    return [token_bytes(tokens[row]) for row in rows]


def lines(texts: Sequence[bytes]) -> list[str]:
    """The texts as tokens.txt has them."""
    return [base64.b64encode(text).decode() for text in texts]


def _write_encoder(
    model: Whisper, path: Path, products: Products, described: dict[str, Any]
) -> Graph:
    g = Graph(products, many=True)
    whole = keys_values(g, model, _without_zeros(g))
    for name, one in zip(_CROSS.values(), split_cross(g, model, whole), strict=True):
        g.op("Identity", one, out=name)
    outputs = _cross_shapes(model)
    inputs = {"mel": (FLOAT, [1, model.mel.shape[1], "time"])}
    g.save(path, inputs, outputs, described)
    return g


def _without_zeros(g: Graph) -> str:
    """Log-mel up to the last frame that is not all zeros, of at least two frames."""
    size = g.op("ReduceMax", g.op("Abs", "mel"), g.ints(0, 1), keepdims=0)  # of each frame
    loud = g.op("Cast", g.op("Greater", size, g.constant(0, np.float32)), to=INT64)
    count = g.op("Squeeze", g.op("Shape", "mel", start=2, end=3))
    one = g.constant(1, np.int64)
    place = g.op("Range", one, g.op("Add", count, one), one)
    last = g.op("ReduceMax", g.op("Mul", place, loud), g.ints(0), keepdims=1)
    return g.slice("mel", g.ints(0), g.op("Max", last, g.ints(2)), 2)


def _write_decoder(model: Whisper, path: Path, products: Products) -> Graph:
    g = Graph(products)
    layers, heads, size = model.layers[1], model.heads, model.width // model.heads
    shape = g.op("Concat", g.ints(layers, heads), "offset", g.ints(size), axis=0)
    past = {ours: g.split(name, layers, 0) for ours, name in _CROSS.items()}
    for ours, name in _SELF.items():
        known = g.slice(f"in_{name}", g.ints(0), "offset", 2)
        past[ours] = g.split(g.op("Reshape", known, shape, allowzero=1), layers, 0)
    (text, stop, _), new = decode(g, model, "tokens", "offset", past)
    for ours, name in _SELF.items():
        g.op("Concat", *new[ours], axis=0, out=f"out_{name}")
    never = g.constant(np.full((1, 1, len(model.prompt)), NEVER), np.float32)
    g.op("Concat", text, stop, never, axis=2, out="logits")
    # The first caches are zeros (L, 1, places, D), which none is read of.
    caches: tuple[int, list[Any]] = (FLOAT, [layers, "heads", "places", "size"])
    inputs: Shapes = {"tokens": (INT64, [1, "n"])}
    inputs |= {f"in_{name}": caches for name in _SELF.values()}
    inputs |= _cross_shapes(model) | {"offset": (INT64, [1])}
    count = len(model.rows) + 1 + len(model.prompt)
    outputs: Shapes = {"logits": (FLOAT, [1, 1, count])}
    outputs |= {f"out_{name}": caches for name in _SELF.values()}
    g.save(path, inputs, outputs)
    return g


def _cross_shapes(model: Whisper) -> Shapes:
    """Keys and values of all layers."""
    layers, heads, size = model.layers[1], model.heads, model.width // model.heads
    shapes = [layers, heads, size, "frames"], [layers, heads, "frames", size]
    return {name: (FLOAT, shape) for name, shape in zip(_CROSS.values(), shapes, strict=True)}


def _described(model: Whisper, texts: Sequence[bytes], places: int) -> dict[str, Any]:
    """Metadata of the encoder, which sherpa-onnx reads."""
    end = len(texts)
    prompt = [end + 1 + place for place in range(len(model.prompt))]
    none = prompt[-1] + 1  # an id that no token has
    return {
        "model_type": "whisper",
        "n_mels": model.mel.shape[1],
        "n_text_layer": model.layers[1],
        "n_text_ctx": places,
        "n_text_state": model.width,
        "n_vocab": none,
        "sot": prompt[0],
        "sot_index": 0,
        "sot_sequence": ",".join(map(str, prompt[:-1])),
        "no_timestamps": prompt[-1],
        "eot": end,
        "blank_id": texts.index(_BLANK) if _BLANK in texts else none,
        "is_multilingual": 0,  # its prompt has the language
        **dict.fromkeys(("no_speech", "translate", "transcribe", "sot_prev", "sot_lm"), none),
        "non_speech_tokens": "",
    }
