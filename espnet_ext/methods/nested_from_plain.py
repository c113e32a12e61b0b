"""A family that starts from a trained plain encoder: its state dict is renamed while loading.

A family stores the weights of a plain encoder under the names of its parametrizations, and has
batch statistics and learnt scales that a plain encoder lacks. After loading, the largest network
at 32 bits equals the plain encoder, and every other member has its weights and statistics.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from espnet_ext.methods.chains import part_of
from espnet_ext.methods.nested_layers import (
    STATISTICS,
    NestedBatchNorm,
    NestedBias,
    NestedWeight,
)
from espnet_ext.methods.nested_order import sort_state
from espnet_ext.methods.nested_table import NestedTable
from espnet_ext.methods.positions import NestedPositions
from espnet_ext.methods.quantise import first_scale
from espnet_ext.methods.tensors import plain_tensors

_PARTS = (NestedWeight, NestedTable, NestedBias, NestedPositions)


def start_from_plain(stack: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Change the state of a plain encoder into that of the family ``stack``, in place.

    The state of a family is left as it is.

    Args:
        stack: container of the layers of a family, or the model around it.
        state: tensors by name; where it has both names of a tensor, the plain one is used.
        prefix: of the names of the container, with its dot.
    """
    norms = {
        f"{prefix}{name}.": layer
        for name, layer in stack.named_modules()
        if isinstance(layer, NestedBatchNorm)
    }
    plain = _is_plain(norms, state)
    chains = [
        (place, name, chain)
        for place, name, chain in plain_tensors(stack, state, prefix)
        if part_of(chain, _PARTS) is not None
    ]
    for place, name, chain in chains:
        _rename(chain, state, place, name)
    sort_state(chains, state)
    for place, norm in norms.items() if plain else ():
        for key in norm.statistics:
            for name in STATISTICS:
                state[f"{place}statistics.{key}.{name}"] = state[place + name].clone()
    steps = getattr(stack, "steps", None)
    if steps is not None:
        state.setdefault(f"{prefix}steps", steps)


def _rename(chain: Any, state: dict[str, Any], place: str, name: str) -> None:
    """Store a plain tensor under the name of its parametrization; initialise what that adds.

    If factors come first in the chain it keeps its name, for HRF to start from.
    """
    target = f"{place}parametrizations.{name}."
    index, nested = part_of(chain, _PARTS) or (0, chain[0])
    original = state[f"{place}{name}"]
    if chain.is_tensor:
        state[f"{target}original"] = state.pop(f"{place}{name}")
    if isinstance(nested, NestedTable):
        for part, tensor in nested.state_dict().items():  # to be fitted to the table
            kept = part.endswith("kept")
            state[f"{target}{index}.{part}"] = tensor if kept else torch.zeros_like(tensor)
    if isinstance(nested, NestedWeight):
        for bits in nested.scales:
            scale = first_scale(original, int(bits), nested.per)
            state[f"{target}{index}.scales.{bits}"] = scale


def _is_plain(norms: Mapping[str, NestedBatchNorm], state: Mapping[str, Any]) -> bool:
    """True if ``state`` has no statistics of the other members, or only their initial ones."""
    count = "num_batches_tracked"
    counts = [
        state.get(f"{place}statistics.{key}.{count}")
        for place, norm in norms.items()
        for key in norm.statistics
    ]
    if all(found is None for found in counts):
        return all(place + name in state for place in norms for name in STATISTICS)
    return all(state.get(place + count, 0) > 0 for place in norms) and not any(counts)
