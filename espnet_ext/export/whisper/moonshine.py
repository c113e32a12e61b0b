"""Whisper as four ONNX graphs that sherpa-onnx runs as ``from_moonshine`` (raw audio in).

    preprocess       audio (1, n) -> log-mel (1, bins, time)
    encode           log-mel -> keys and values of all cross-attentions (1, frames, 2 L D)
    uncached_decode  the runtime's first token -> the first states; it has no weights
    cached_decode    a token and the states -> scores of the next token, new states

Ids of the runtime: 0 unknown, 1 its start, 2 its end, 3 the model's prompt, text from 4 on. The
first call of ``cached_decode`` gets the token 3 and replaces it by the whole prompt. Of a model
that detects languages it scores only these, whose ids are the last ones; the call with a language
appends the rest of the prompt. Frames are those of the speech: it is not padded to 30 s.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.export.graphs.graph import FLOAT, INT32, Graph
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.whisper.encoder import write_encode
from espnet_ext.export.whisper.layers import feed_forward, linear, norm, queries_keys_values
from espnet_ext.export.whisper.mel import write_log_mel
from espnet_ext.export.whisper.model import END, PROMPT, Whisper
from espnet_ext.export.whisper.table import embed_and_score, token_rows

PREPROCESS, ENCODE, FIRST, NEXT = (
    f"{name}.onnx" for name in ("preprocess", "encode", "uncached_decode", "cached_decode")
)
SELF, CROSS = ("self_key", "self_value"), ("cross_key", "cross_value")  # states of a layer
NEVER = -1e9  # score of an id that the model has no token for

type Shapes = dict[str, tuple[int, Sequence[Any]]]  # type and shape of tensors, by name


def write(model: Whisper, folder: Path, products: Products) -> dict[int, int]:
    """Write the four graphs into a folder.

    Args:
        model: what they compute.
        folder: that exists.
        products: see ``Graph``.

    Returns:
        How many weights are stored in how many bits.
    """
    write_log_mel(folder / PREPROCESS, model.mel, model.least)
    encode = write_encode(model, folder / ENCODE, products)
    _write_first(model, folder / FIRST)
    following = _write_next(model, folder / NEXT, products)
    return dict(encode.rounded + following.rounded)


def _write_first(model: Whisper, path: Path) -> None:
    """The states before the first token, and scores that choose the prompt."""
    g = Graph()
    layers, heads, size = model.layers[1], model.heads, model.width // model.heads
    for name, whole in zip(CROSS, split_cross(g, model, "encoder_out"), strict=True):
        outs = [f"{name}_{layer}" for layer in range(layers)]
        g.ops("Split", whole, outs=outs, axis=0, num_outputs=layers)
    empty = g.constant(np.zeros((1, heads, 0, size), np.float32))
    for name in SELF:
        for layer in range(layers):
            g.op("Identity", empty, out=f"{name}_{layer}")
    scores = np.zeros((1, 1, model.ids), np.float32)
    scores[0, 0, PROMPT] = 1
    g.op("Identity", g.constant(scores), out="logits")
    inputs = _decoder_inputs(model, "tokens")
    outputs = {"logits": (FLOAT, [1, 1, model.ids]), **states(model, "")}
    g.save(path, inputs, outputs)


def split_cross(g: Graph, model: Whisper, whole: str) -> tuple[str, str]:
    """Keys (L, heads, size, frames) and values (L, heads, frames, size) of (1, frames, 2 L D)."""
    layers, heads, size = model.layers[1], model.heads, model.width // model.heads
    both = g.op("Reshape", whole, g.ints(-1, 2, layers, heads, size))
    key, value = (g.op("Squeeze", part, g.ints(1)) for part in g.split(both, 2, 1))
    key = g.op("Transpose", key, perm=[1, 2, 3, 0])
    return key, g.op("Transpose", value, perm=[1, 2, 0, 3])


def decode(
    g: Graph, model: Whisper, tokens: str, known: str, past: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, str, str], dict[str, list[str]]]:
    """Run the decoder.

    Args:
        g: the graph.
        model: what it computes.
        tokens: rows (1, n) of the table.
        known: how many tokens were before them (1,).
        past: the states of each layer, by their kind.

    Returns:
        Scores of text, end and languages after the last token (``embed_and_score``); of each layer
        the grown states ``new_self_key_0`` and so on, by their kind.
    """
    at = model.decoder
    x, score = embed_and_score(g, model, tokens)
    positions = g.matrix(model.weight(f"{at}embed_positions.weight"))
    end = g.op("Add", known, g.op("Shape", tokens, start=1, end=2))
    x = g.op("Add", x, g.slice(positions, known, end, 0))
    new: dict[str, list[str]] = {name: [] for name in SELF}
    for layer in range(model.layers[1]):
        x, grown = _layer(g, model, x, layer, {name: one[layer] for name, one in past.items()})
        for name, one in zip(SELF, grown, strict=True):
            new[name].append(one)
    last = norm(g, model, g.slice(x, g.ints(-1), None, 1), f"{at}layer_norm")
    return score(last), new


def _layer(
    g: Graph, model: Whisper, x: str, layer: int, past: Mapping[str, str]
) -> tuple[str, list[str]]:
    """The output of a layer for x (1, n, D), and its grown keys and values."""
    heads, size = model.heads, model.width // model.heads
    prefix = f"{model.decoder}layers.{layer}."
    y = norm(g, model, x, f"{prefix}self_attn_layer_norm")
    parts = queries_keys_values(g, model, y, f"{prefix}self_attn.")
    y, *grown = g.ops(
        *("MultiHeadAttention", *parts, "", "", "", *(past[name] for name in SELF)),
        outs=[f"attended_{layer}", *(f"new_{name}_{layer}" for name in SELF)],
        domain="com.microsoft",
        num_heads=heads,
        unidirectional=1,
    )
    x = g.op("Add", x, linear(g, model, y, f"{prefix}self_attn.out_proj"))
    y = norm(g, model, x, f"{prefix}encoder_attn_layer_norm")
    query = linear(g, model, y, f"{prefix}encoder_attn.q_proj")
    query = g.op("Mul", query, g.constant(size**-0.5, np.float32))
    split = g.op("Reshape", query, g.ints(1, -1, heads, size))
    scores = g.op("MatMul", g.op("Transpose", split, perm=[0, 2, 1, 3]), past["cross_key"])
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), past["cross_value"])
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(1, -1, model.width))
    x = g.op("Add", x, linear(g, model, y, f"{prefix}encoder_attn.out_proj"))
    return feed_forward(g, model, x, prefix), grown


def _write_next(model: Whisper, path: Path, products: Products) -> Graph:
    g = Graph(products)
    known = g.op("Shape", "self_key_0", start=2, end=3)
    layers = range(model.layers[1])
    past = {name: [f"{name}_{layer}" for layer in layers] for name in (*SELF, *CROSS)}
    scores, _ = decode(g, model, token_rows(g, model, known), known, past)
    for name in CROSS:
        for one in past[name]:
            g.op("Identity", one, out=f"new_{one}")
    text, stop, languages = scores
    never = [g.constant(np.full((1, 1, n), NEVER), np.float32) for n in (END, 1)]
    parts = [never[0], stop, never[1], text]
    if model.languages:
        first = g.op("Equal", known, g.ints(0))
        parts[1], parts[3] = (g.op("Where", first, never[1], part) for part in (stop, text))
        parts.append(g.op("Where", first, languages, never[1]))
    g.op("Concat", *parts, axis=2, out="logits")
    inputs = {**_decoder_inputs(model, "token"), **states(model, "")}
    outputs = {"logits": (FLOAT, [1, 1, model.ids]), **states(model, "new_")}
    g.save(path, inputs, outputs)
    return g


def _decoder_inputs(model: Whisper, token: str) -> Shapes:
    """Inputs of both graphs of the decoder: a token, and all that the encoder gives."""
    return {
        token: (INT32, [1, 1]),
        "encoder_out": (FLOAT, [1, "frames", model.kv_width]),
        "seq_len": (INT32, [1]),
    }


def states(model: Whisper, prefix: str) -> Shapes:
    """Names and shapes of the decoder's states, separate for each layer so that none is copied."""
    heads, size = model.heads, model.width // model.heads
    grown, time = f"{prefix}past", "frames"
    shapes = {name: [1, heads, grown, size] for name in SELF}
    shapes |= dict(zip(CROSS, ([1, heads, size, time], [1, heads, time, size]), strict=True))
    return {
        f"{prefix}{name}_{layer}": (FLOAT, shape)
        for name, shape in shapes.items()
        for layer in range(model.layers[1])
    }
