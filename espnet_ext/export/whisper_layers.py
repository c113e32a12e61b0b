"""Parts of layers that Whisper's graphs share; ``at`` and ``name`` are of weights."""

import torch

from espnet_ext.export.graph import Graph, joined
from espnet_ext.export.whisper_model import Whisper


def queries_keys_values(g: Graph, model: Whisper, x: str, at: str) -> str:
    """Queries, keys and values (1, n, 3 D) by one product."""
    weight = joined([model.weight(f"{at}{kind}_proj.weight") for kind in "qkv"])
    query, value = (model.tensor(f"{at}{kind}_proj.bias") for kind in "qv")
    return g.linear(x, weight, torch.cat([query, torch.zeros_like(query), value]))


def feed_forward(g: Graph, model: Whisper, x: str, at: str) -> str:
    """The second half of a layer: normalised, twice multiplied, added."""
    y = norm(g, model, x, f"{at}final_layer_norm")
    y = gelu(g, linear(g, model, y, f"{at}fc1"))
    return g.op("Add", x, linear(g, model, y, f"{at}fc2"))


def linear(g: Graph, model: Whisper, x: str, name: str) -> str:
    """The product with a weight and its bias."""
    return g.linear(x, model.weight(f"{name}.weight"), model.tensor(f"{name}.bias"))


def norm(g: Graph, model: Whisper, x: str, name: str) -> str:
    """Layer normalisation."""
    return g.norm(x, model.tensor(f"{name}.weight"), model.tensor(f"{name}.bias"))


def gelu(g: Graph, x: str) -> str:
    """The activation of Whisper's layers."""
    return g.microsoft("Gelu", x)
