"""Recurrent layers of torch with parametrized weights."""

from typing import Any

from torch import Tensor, nn


def use_computed_weights(layer: nn.Module) -> None:
    """Make a parametrized LSTM or GRU compute with the effective weights, in place.

    Torch's recurrent layers compute with a list of their weights that is made once, which a
    parametrization does not change. Here the list is made anew whenever it is read. The change is
    to the class that torch.nn.utils.parametrize has made for this layer alone.
    """
    generated: Any = type(layer)
    generated._flat_weights = property(_weights, _ignore)
    # These would copy computed weights into one piece of memory, where they grow stale.
    generated._init_flat_weights = _ignore
    generated._update_flat_weights = _ignore
    generated.flatten_parameters = _ignore
    vars(layer).pop("_flat_weights", None)
    vars(layer)["_flat_weight_refs"] = []


def _weights(layer: Any) -> list[Tensor]:
    # All of one type, also under autocast, where products are rounded and biases are not.
    kind = next(layer.parameters()).dtype
    return [getattr(layer, name).to(kind) for name in layer._flat_weights_names]


def _ignore(layer: Any, *values: Any) -> None:
    """Do nothing, since the list is computed."""
