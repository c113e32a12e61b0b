"""The order of the inner units of feed-forward networks, by which a narrow member gets its units.

A feed-forward network computes the same whatever the order of its inner units. Sorted by
importance, the leading ones, of which narrow members consist, are the ones to keep.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from espnet_ext.methods.nested_layers import NestedWeight
from espnet_ext.methods.sites import Layer


def importance(up: Tensor, down: Tensor) -> Tensor:
    """Return the importance (units,) of inner units: norm of the inputs times norm of the outputs.

    Args:
        up: weight (units, ...) of the layer into them.
        down: weight (o, units, ...) of the layer out of them.
    """
    return up.float().flatten(1).norm(dim=1) * down.float().transpose(0, 1).flatten(1).norm(dim=1)


@torch.no_grad()
def sort_units(layers: Sequence[Layer]) -> None:
    """Sort the units of every feed-forward network among ``layers``, in place.

    ``site`` is the role of a layer, ``up`` or ``down``; both layers have one parent.
    """
    networks: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if layer.site in ("up", "down"):
            networks.setdefault(layer.name.rpartition(".")[0], {})[layer.site] = layer.module
    done: set[int] = set()
    for network in networks.values():
        up, down = network["up"], network["down"]
        if id(up.weight) in done:  # tied
            continue
        done.add(id(up.weight))
        order = _order(up.weight, down.weight)
        up.weight.copy_(up.weight[order])
        down.weight.copy_(down.weight[:, order])
        if up.bias is not None:
            up.bias.copy_(up.bias[order])


def sort_state(chains: Sequence[tuple[str, str, Any]], state: MutableMapping[str, Tensor]) -> None:
    """Sort the units in the state of a family that has just been made from a plain one.

    Args:
        chains: name of a layer with its dot, name of a tensor, its parametrizations.
        state: with the tensors under the names of the parametrizations.
    """
    networks: dict[str, dict[int, str]] = {}
    for place, name, chain in chains:
        weight = chain[0]
        if isinstance(weight, NestedWeight) and weight.sorted and weight.cut is not None:
            parent = place[:-1].rpartition(".")[0]
            networks.setdefault(parent, {})[weight.cut] = f"{place}parametrizations.{name}.original"
    for network in networks.values():
        up, down = network[0], network[1]
        order = _order(state[up], state[down])
        state[up], state[down] = state[up][order], state[down][:, order]
        bias = up.replace("parametrizations.weight.", "parametrizations.bias.")
        if bias in state:
            state[bias] = state[bias][order]


def _order(up: Tensor, down: Tensor) -> Tensor:
    return importance(up, down).argsort(descending=True, stable=True)
