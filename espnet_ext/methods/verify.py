"""Comparison of a deployed model with its training model, by their outputs and by their weights."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.protocols import Product, Rounding

TOLERANCE = 1e-5  # absolute


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest absolute difference of two models' outputs."""
    pairs = zip(first, second, strict=True)
    return max(((one - other).abs().max().item() for one, other in pairs), default=0.0)


def refuse_difference(difference: float, name: str) -> None:
    """Raise UserError if outputs differ by more than TOLERANCE, or are NaN."""
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name} differs from the training model by {difference:.1e} "
            f"(limit {TOLERANCE:.0e}); nothing was written"
        )


@contextlib.contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """Inside the block, a training model multiplies in float64 what ``deploy`` does.

    Else what differs is the rounding of long sums in float32, not the deployed model.
    """
    layers = [
        layer
        for layer in model.modules()
        if parametrize.is_parametrized(layer)
        and not any(isinstance(part, Rounding) for part in layer.modules())
    ]
    parts = [p for layer in layers for p in layer.modules() if isinstance(p, Product)]
    try:
        for part in parts:
            part.in_float64 = True
        yield
    finally:
        for part in parts:
            part.in_float64 = False


@torch.no_grad()
def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """All floating-point tensors that a model returns for a tensor, or a tuple of arguments."""
    found = model(*(example if isinstance(example, tuple) else (example,)))
    return [tensor for tensor in _tensors(found) if tensor.is_floating_point()]


@torch.no_grad()
def refuse_other_weight(deployed: nn.Module, trained: nn.Module) -> None:
    """Refuse a deployed layer whose attribute ``weight`` is not the effective weight.

    Parents read it instead of calling the layer: ``nn.MultiheadAttention``, WavLM, and in
    evaluation ``nn.TransformerEncoderLayer``.

    Raises:
        RuntimeError: a fault of the method.
    """
    weight: Any = getattr(deployed, "weight", None)
    wanted: Any = trained.weight
    if weight is not None and not torch.allclose(weight, wanted, rtol=1e-3, atol=TOLERANCE):
        name = type(deployed).__name__
        raise RuntimeError(f"{name}.weight is not the weight that the training model computes with")


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _tensors(list(found.values()))
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _tensors(item)
