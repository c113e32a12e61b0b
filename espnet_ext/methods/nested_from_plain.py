"""A family that starts from a trained plain encoder: what its state dict is called in training.

A family keeps a plain encoder's weights under the names of its parametrizations, and has batch
statistics and learnt scales that a plain encoder lacks. Loading a plain encoder's state into the
container of a family puts all three in their places, so that the largest network at 32 bits is
that encoder, and every other member has its weights and statistics.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from espnet_ext.methods.nested_layers import NestedBatchNorm, NestedWeight
from espnet_ext.methods.quantise import first_scale

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def start_from_plain(stack: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Change the state of a plain encoder into that of the family ``stack``, in place.

    A family's own state is left as it is.

    Args:
        stack: container of the layers of a family.
        state: tensors by name; may hold a family's names too, which plain ones then replace.
        prefix: of the names of the container, with its dot.
    """
    norms = {
        f"{prefix}{inner}.": layer
        for inner, layer in stack.named_modules()
        if isinstance(layer, NestedBatchNorm)
    }
    plain = _is_of_plain(norms, state)
    for inner, layer in stack.named_modules():
        place = f"{prefix}{inner}."
        if parametrize.is_parametrized(layer):
            parametrizations: Any = layer.parametrizations
            for name, chain in parametrizations.items():
                if f"{place}{name}" in state:
                    original = state.pop(f"{place}{name}")
                    state[f"{place}parametrizations.{name}.original"] = original
                    _first_scales(chain[0], original, state, f"{place}parametrizations.{name}.0.")
    for place, norm in norms.items() if plain else ():
        for key in norm.statistics:
            for name in _STATISTICS:
                state[f"{place}statistics.{key}.{name}"] = state[place + name].clone()
    steps = getattr(stack, "steps", None)
    if steps is not None:
        state.setdefault(f"{prefix}steps", steps)


def _first_scales(weight: nn.Module, original: Tensor, state: dict[str, Any], place: str) -> None:
    """The learnt scales of a weight begin where its largest entries put them."""
    if isinstance(weight, NestedWeight):
        for bits in weight.scales:
            state[f"{place}scales.{bits}"] = first_scale(original, int(bits), weight.per)


def _is_of_plain(norms: Mapping[str, NestedBatchNorm], state: Mapping[str, Any]) -> bool:
    """Whether the other members have no statistics there, or none but those they begin with."""
    count = "num_batches_tracked"
    counts = [
        state.get(f"{place}statistics.{key}.{count}")
        for place, norm in norms.items()
        for key in norm.statistics
    ]
    if all(found is None for found in counts):
        return all(place + name in state for place in norms for name in _STATISTICS)
    return all(state.get(place + count, 0) > 0 for place in norms) and not any(counts)
