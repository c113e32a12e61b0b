"""Whisper's encoder as a graph, with mimics or attention within chunks where a model has them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from espnet_ext.encoders.chunks import Geometry
from espnet_ext.export.graphs.graph import FLOAT, INT32, Graph
from espnet_ext.export.graphs.products import Products, joined
from espnet_ext.export.whisper.layers import (
    feed_forward,
    gelu,
    linear,
    norm,
    queries_keys_values,
    with_residual,
)
from espnet_ext.export.whisper.model import Mimics, Whisper
from espnet_ext.formats.bits import Quantised

_NEVER = -1e9  # score of a frame that is not attended to


def write_encode(model: Whisper, path: Path, products: Products) -> Graph:
    """Write the graph from log-mel to keys and values of the decoder; return it."""
    g = Graph(products, many=True)
    g.op("Identity", keys_values(g, model, "mel"), out="encoder_out")
    bins = model.mel.shape[1]
    inputs = {"mel": (FLOAT, [1, bins, "time"]), "features_len": (INT32, [1])}
    g.save(path, inputs, {"encoder_out": (FLOAT, [1, "frames", model.kv_width])})
    return g


def keys_values(g: Graph, model: Whisper, mel: str) -> str:
    """Keys of all layers of the decoder, then their values, (1, frames, 2 L D), of log-mel."""
    x, at = g.op("Transpose", mel, perm=[0, 2, 1]), model.encoder
    x = gelu(g, _convolution(g, model, x, f"{at}conv1", 1))
    x = gelu(g, _convolution(g, model, x, f"{at}conv2", 2))
    return _crossed(g, model, _layers(g, model, x))


def _crossed(g: Graph, model: Whisper, x: str) -> str:
    """Keys and values of the encoder's output."""
    layers = [f"{model.decoder}layers.{k}.encoder_attn." for k in range(model.layers[1])]
    names = [f"{layer}{kind}_proj" for kind in "kv" for layer in layers]
    weights = [model.weight(f"{name}.weight") for name in names]
    value = torch.cat([model.tensor(f"{layer}v_proj.bias") for layer in layers])
    bias = torch.cat([torch.zeros_like(value), value])
    different = {id(weight): weight for weight in weights}  # layers may share a base
    if len(different) == len(weights) and not model.has_residuals:
        return g.linear(x, joined(weights), bias)
    products = g.split(g.linear(x, joined(list(different.values()))), len(different), -1)
    found = dict(zip(different, products, strict=True))
    projections = [
        with_residual(g, model, found[id(weight)], x, name)
        for weight, name in zip(weights, names, strict=True)
    ]
    return g.op("Add", g.op("Concat", *projections, axis=-1), g.constant(bias.float().numpy()))


def _layers(g: Graph, model: Whisper, x: str) -> str:
    """The output of the encoder's layers, or of the mimics in their place."""
    at = model.encoder
    if model.mimics is not None and not model.layers[0]:
        return _mimicked(g, model, model.mimics, x)
    frames = g.op("Shape", x, start=1, end=2)
    positions = g.matrix(model.weight(f"{at}embed_positions.weight"))
    x = g.op("Add", x, g.slice(positions, g.ints(0), frames, 0))
    scores = [] if model.chunks is None else ["", "", _chunk_scores(g, frames, model.chunks)]
    for layer in range(model.layers[0]):
        prefix = f"{at}layers.{layer}."
        y = norm(g, model, x, f"{prefix}self_attn_layer_norm")
        parts = queries_keys_values(g, model, y, f"{prefix}self_attn.")
        y = g.microsoft("MultiHeadAttention", *parts, *scores, num_heads=model.heads)
        x = g.op("Add", x, linear(g, model, y, f"{prefix}self_attn.out_proj"))
        x = feed_forward(g, model, x, prefix)
    if model.mimics is not None:
        return _mimicked(g, model, model.mimics, x)
    return norm(g, model, x, f"{at}layer_norm")


def _chunk_scores(g: Graph, frames: str, chunks: Geometry) -> str:
    """What attention within chunks adds to scores (1, 1, queries, keys); see ``chunk_mask``."""
    count = g.op("Squeeze", frames)
    place = g.op("Range", g.constant(0, np.int64), count, g.constant(1, np.int64))
    size, history = (g.constant(n, np.int64) for n in (chunks.chunk, chunks.history))
    start = g.op("Unsqueeze", g.op("Mul", g.op("Div", place, size), size), g.ints(1))
    late = g.op("GreaterOrEqual", place, g.op("Sub", start, history))
    early = g.op("Less", place, g.op("Add", start, size))
    scores = (g.constant(n, np.float32) for n in (0, _NEVER))
    return g.op("Unsqueeze", g.op("Where", g.op("And", late, early), *scores), g.ints(0, 1))


def _mimicked(g: Graph, model: Whisper, mimics: Mimics, x: str) -> str:
    """The output of mimics in a row (``methods.mimic``)."""
    for part in range(mimics.count):
        at = f"{mimics.at}{part}."
        if mimics.heads is None:
            inner = norm(g, model, linear(g, model, x, f"{at}linear1"), f"{at}norm")
            x = linear(g, model, g.op("Relu", inner), f"{at}linear2")
            continue
        parts = [linear(g, model, x, f"{at}linear_{kind}") for kind in "qkv"]
        y = g.microsoft("MultiHeadAttention", *parts, num_heads=mimics.heads)
        x = g.op("Add", x, linear(g, model, y, f"{at}linear_out"))
        x = norm(g, model, x, f"{at}norm1")
        y = linear(g, model, g.op("Relu", linear(g, model, x, f"{at}linear1")), f"{at}linear2")
        x = norm(g, model, g.op("Add", x, y), f"{at}norm2")
    return x


def _convolution(g: Graph, model: Whisper, x: str, name: str, stride: int) -> str:
    """A convolution over three frames (1, T, i), as a product with three frames side by side."""
    padded = g.op("Pad", x, g.ints(0, 1, 0, 0, 1, 0))
    frames = g.op("Shape", x, start=1, end=2)
    parts = [
        g.op(
            "Unsqueeze",
            g.slice(padded, g.ints(k), g.op("Add", frames, g.ints(k)), 1, stride),
            g.ints(3),
        )
        for k in range(3)
    ]
    weight = model.weight(f"{name}.weight")
    numbers = weight.ints if isinstance(weight, Quantised) else weight
    assert isinstance(numbers, Tensor)
    inputs = numbers.shape[1]
    joined_frames = g.op("Concat", *parts, axis=3)
    flat = g.op("Reshape", joined_frames, g.ints(1, -1, 3 * inputs))
    kept = weight.flatten(1) if isinstance(weight, Tensor) else weight
    return g.linear(flat, kept, model.tensor(f"{name}.bias"))
