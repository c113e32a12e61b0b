"""Parts of layers that Whisper's graphs share; ``at`` and ``name`` are of weights."""

from typing import Any

import torch

from espnet_ext.export.graphs.graph import Graph
from espnet_ext.export.graphs.products import joined
from espnet_ext.export.whisper.model import Whisper
from espnet_ext.formats.bits import Quantised


def queries_keys_values(g: Graph, model: Whisper, x: str, at: str) -> list[str]:
    """Queries, keys and values, each (1, n, D), by one product."""
    names = [f"{at}{kind}_proj" for kind in "qkv"]
    weight = joined([model.weight(f"{name}.weight") for name in names])
    query, value = (model.tensor(f"{at}{kind}_proj.bias") for kind in "qv")
    whole = g.linear(x, weight, torch.cat([query, torch.zeros_like(query), value]))
    parts = zip(g.split(whole, 3, -1), names, strict=True)
    return [with_residual(g, model, part, x, name) for part, name in parts]


def feed_forward(g: Graph, model: Whisper, x: str, at: str) -> str:
    """The second half of a layer: normalised, twice multiplied, added."""
    y = norm(g, model, x, f"{at}final_layer_norm")
    y = gelu(g, linear(g, model, y, f"{at}fc1"))
    return g.op("Add", x, linear(g, model, y, f"{at}fc2"))


def linear(g: Graph, model: Whisper, x: str, name: str) -> str:
    """The product with a weight and its bias."""
    y = g.linear(x, model.weight(f"{name}.weight"), model.tensor(f"{name}.bias"))
    return with_residual(g, model, y, x, name)


def with_residual(g: Graph, model: Whisper, y: str, x: str, name: str) -> str:
    """Add what a layer's residual makes of x to the output of its shared base, if it has one.

    As ``methods.shared_linear.with_residual``.
    """
    if f"{name}.down" in model.state:
        inner = g.linear(x, model.weight(f"{name}.down"))
        y = g.op("Add", y, g.linear(inner, model.weight(f"{name}.up")))
    if f"{name}.diagonal" in model.state:
        diagonal = model.tensor(f"{name}.diagonal")
        weight: Any = model.weight(f"{name}.weight")
        outputs, inputs = (weight.ints if isinstance(weight, Quantised) else weight).shape[:2]
        z = x if len(diagonal) == inputs else g.slice(x, g.ints(0), g.ints(len(diagonal)), -1)
        z = g.op("Mul", z, g.constant(diagonal.numpy()))
        if missing := outputs - len(diagonal):
            z = g.op("Pad", z, g.ints(0, 0, 0, 0, 0, missing))
        y = g.op("Add", y, z)
    return y


def norm(g: Graph, model: Whisper, x: str, name: str) -> str:
    """Layer normalisation."""
    return g.norm(x, model.tensor(f"{name}.weight"), model.tensor(f"{name}.bias"))


def gelu(g: Graph, x: str) -> str:
    """The activation of Whisper's layers."""
    return g.microsoft("Gelu", x)
