"""Small helpers on tensors and modules, shared by methods, formats, encoders and models."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espnet_ext.errors import UserError


def frame_mask(lengths: Tensor, frames: int, device: torch.device | None = None) -> Tensor:
    """Return a mask (batch, frames), True for the first ``lengths`` (batch,) frames.

    It is on ``device``, by default that of ``lengths``.
    """
    lengths = lengths.to(device=device)
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def refuse_not_finite(tensor: Tensor, name: str) -> None:
    """Raise UserError if a tensor has NaN or infinite entries."""
    numbers = tensor.is_floating_point() or tensor.is_complex()
    if numbers and not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinite values; train again or use another epoch")


def plain_tensors(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str
) -> Iterator[tuple[str, str, Any]]:
    """Tensors of parametrized layers of which a state has the plain name.

    Args:
        module: with layers whose tensors methods compute.
        state: tensors by name.
        prefix: of the module's names, with its dot.

    Yields:
        The name of the layer, with its dot; that of the tensor; its parametrizations.
    """
    for name, layer in module.named_modules():
        place = f"{prefix}{name}." if name else prefix
        chains: Any = getattr(layer, "parametrizations", {})
        for tensor, chain in chains.items():
            if f"{place}{tensor}" in state:
                yield place, tensor, chain


def graph_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield tensors with a graph that are plain attributes, which ``copy.deepcopy`` refuses.

    ESPnet's attention keeps its last weights so.
    """
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                yield value
