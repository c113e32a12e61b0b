"""Integers of quantised weights in as few bits as they need.

``pack`` writes integers of b bits into n b / 8 bytes.

The 4-bit integers of a weight are nearly, but not quite, a function of its 8-bit ones: at
W / max|W| = 0.0714 the 4-bit integer changes from 0 to 1 among weights whose 8-bit integer is 9.
So rounding stored 8-bit integers again does not give the 4-bit weights that were trained.
``refine`` stores what is missing: one more bit for each of the few 8-bit integers within which a
4-bit one changes. That is 8.1 bits for a weight at both precisions instead of 12, without loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.methods.codes import Coded
from espnet_ext.methods.positions import Sinusoids
from espnet_ext.methods.quantise import dequantise, largest_integer

# W / s is computed in float32, so it may lie this far outside the half step of its integer.
_SLACK = 1e-3


@dataclass(frozen=True)
class Quantised:
    """A weight as integers times scale."""

    ints: Tensor  # (o, ...) int8
    scale: Tensor  # (), (o, 1, ...) or of groups (o, groups, 1, ...), float32
    bits: int  # 8, 6, 4, 3 or 2

    def dequantised(self) -> Tensor:
        """The weight that the layer computes with, (o, ...) float32."""
        return dequantise(self.ints, self.scale)


type Stored = Quantised | Coded | Sinusoids  # what a file holds in place of a tensor


def quantised_state(model: nn.Module, weights: Mapping[str, Stored]) -> dict[str, Tensor | Stored]:
    """Return the state dict of a deployed ``model`` with quantised ``weights`` in it.

    Each tensor has only the first of its names.

    Args:
        model: its weights are the products of integers and scale.
        weights: by any of their names in the state dict.

    Raises:
        KeyError: the model has no such parameter.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    first = {name: same[0] for same in names.values() for name in same}
    packed = {first[name]: weight for name, weight in weights.items()}
    return {
        name: packed.get(name, tensor.detach())
        for name, tensor in model.state_dict().items()
        if first.get(name, name) == name
    }


def pack(ints: Tensor, bits: int) -> Tensor:
    """Pack integers (n,) int8 of 8, 6, 4, 3, 2 or 1 ``bits`` into (ceil(n bits / 8),) uint8.

    Each is from -2^(bits-1) to 2^(bits-1) - 1 (or from 0 to 2^bits - 1); the first is in the lowest
    bits of the first byte.
    """
    if 8 % bits:
        low = ints.contiguous().view(torch.uint8).numpy()[:, None] >> np.arange(
            bits, dtype=np.uint8
        )
        return torch.from_numpy(np.packbits(low & 1, bitorder="little"))
    fields = 8 // bits
    low = ints.contiguous().view(torch.uint8) & (2**bits - 1)
    low = F.pad(low, (0, -len(low) % fields)).view(-1, fields)
    return (low << _shifts(bits)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int, signed: bool = True) -> Tensor:
    """Return the ``count`` integers, int8, that ``pack`` packed."""
    if 8 % bits:
        single = np.unpackbits(packed.numpy(), bitorder="little", count=count * bits)
        weights = 1 << np.arange(bits, dtype=np.uint8)
        low = torch.from_numpy((single.reshape(-1, bits) * weights).sum(1, dtype=np.uint8))
    else:
        low = (packed.unsqueeze(1) >> _shifts(bits)) & (2**bits - 1)
    found = low.flatten()[:count].view(torch.int8)
    if not signed or bits == 8:
        return found
    sign = 2 ** (bits - 1)
    return (found ^ sign) - sign


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` packed integers of ``bits`` bits."""
    return -(-count * bits // 8)


def _shifts(bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8)


def refine(fine: Quantised, coarse: Quantised) -> tuple[Tensor, int]:
    """Return what ``refined`` needs with ``fine`` to compute the same weight at fewer bits.

    These are packed numbers, uint8, and the bits of each of them.

    Raises:
        ValueError: ``coarse`` is not the same weight.
    """
    low, high = _between(fine, coarse.scale, largest_integer(coarse.bits))
    if not ((low <= coarse.ints) & (coarse.ints <= high)).all():
        raise ValueError("not the same weight at fewer bits")
    widest = int((high - low).amax()).bit_length()
    bits = next(b for b in (1, 2, 4, 8) if b >= widest)
    return pack((coarse.ints - low)[low != high], bits), bits


def refined(fine: Quantised, scale: Tensor, bits: int, more: Tensor, width: int) -> Quantised:
    """Return the weight at ``bits`` bits and ``scale``; ``refine`` gave ``more`` and ``width``."""
    low, high = _between(fine, scale, largest_integer(bits))
    unsure = low != high
    count = int(unsure.sum())
    if len(more) != packed_bytes(count, width):
        raise ValueError("the refinement is not of this weight")
    low[unsure] += unpack(more, width, count, signed=False)
    return Quantised(low, scale, bits)


def _between(fine: Quantised, scale: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest integer, int8, at ``scale`` for these finer integers.

    Computed in float64, in which the same operations give the same result everywhere. Where both
    scales are equal, as in rows of zeros, the integers differ only by clipping.
    """
    ratio = fine.scale.double() / scale.double()
    ends = []
    for side in (-1, 1):
        edge = (fine.ints.double() + side * (0.5 + _SLACK)) * ratio
        # At the largest finer integer the weight may have been clipped: it may be any larger one.
        beyond = fine.ints * side == largest_integer(fine.bits)
        edge[beyond] = side * limit
        edge = torch.where(ratio == 1, fine.ints.double(), edge)
        ends.append(edge.round().clamp(-limit, limit).to(torch.int8))
    return ends[0], ends[1]
