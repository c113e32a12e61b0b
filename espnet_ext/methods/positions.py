"""Tables of positions that a formula gives, so that a file need not hold them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NEAR = 1e-3  # that tables of trained models differ by, which were rounded


@dataclass(frozen=True)
class Sinusoids:
    """A table of positions (length, width) by ``sinusoids``."""

    shape: tuple[int, int]

    def dequantised(self) -> Tensor:
        """The table, (length, width) float32."""
        return sinusoids(*self.shape)


def sinusoids(length: int, width: int) -> Tensor:
    """Return sines, then cosines, of positions (length, width): numbers of float16 in float32.

    The wavelengths rise from 2 pi to 20,000 pi (arXiv 1706.03762, section 3.5). Rounding to
    float16 makes them equal on all machines.
    """
    rates = np.exp(-np.log(10_000.0) / max(width // 2 - 1, 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates
    found = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return torch.from_numpy(found.astype(np.float16).astype(np.float32))


def are_sinusoids(table: Tensor) -> bool:
    """True if a table of positions (length, width) is that of ``sinusoids``, nearly."""
    if table.shape[1] % 2:
        return False
    wanted = sinusoids(*table.shape).to(table.device)
    return bool((table.detach().float() - wanted).abs().max() < _NEAR)


class NestedPositions(nn.Module):
    """Parametrization of such a table: as it is at 32 bits, computed in members below."""

    rounds = True

    def __init__(self, weight: Tensor, selection: Any):
        """``selection``: of the family."""
        super().__init__()
        self.selection = selection
        self.register_buffer("table", sinusoids(*weight.shape), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the table (length, width) of the selected sub-network."""
        return weight if self.selection.member.bits == 32 else self.table.to(weight.dtype)
