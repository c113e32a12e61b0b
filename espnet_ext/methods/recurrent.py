"""Recurrent layers of torch whose weights are parametrized."""

from typing import Any

from torch import Tensor, nn


def use_computed_weights(layer: nn.Module) -> None:
    """Have a parametrized LSTM or GRU compute with the effective weights, in place.

    Torch's recurrent layers keep a list of their weights, made once, and compute with that: a
    parametrization registered on one would be without effect. The list is here made anew whenever
    it is read. torch.nn.utils.parametrize has made a class for this layer alone, which takes it.
    """
    computed: Any = type(layer)
    computed._flat_weights = property(_weights, _keep_nothing)
    # They would put weights that are computed, and then forgotten, into one piece of memory.
    computed._init_flat_weights = _nothing
    computed._update_flat_weights = _nothing
    computed.flatten_parameters = _nothing
    vars(layer).pop("_flat_weights", None)
    vars(layer)["_flat_weight_refs"] = []


def _weights(layer: Any) -> list[Tensor]:
    # Of one type, also under autocast, where products are rounded and biases are not.
    kind = next(layer.parameters()).dtype
    return [getattr(layer, name).to(kind) for name in layer._flat_weights_names]


def _keep_nothing(layer: Any, value: Any) -> None:
    """Torch sets the list; it is computed instead."""


def _nothing(layer: Any) -> None:
    """Nothing to flatten or to keep up to date."""
