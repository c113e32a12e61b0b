"""Quantised layers of a deployed model, and their integers in as few bits as they need.

A layer that is deployed at 8, 4 or 2 bits is a plain layer whose weight is integers times scale;
``quantise_layer`` makes it and leaves the integers with the layer, where ``quantised_state`` finds
them for the file. ``pack`` writes integers of b bits into n b / 8 bytes.

The 4-bit integers of a weight are nearly, but not quite, a function of its 8-bit ones: at
W / max|W| = 0.0714 the 4-bit integer changes from 0 to 1 amid the weights whose 8-bit integer is 9.
So a file that holds 8 bits and rounds them again does not hold the 4-bit weights that were trained.
``refine`` keeps what is missing: for the few 8-bit integers amid which a 4-bit one changes, one
more bit. That is 8.1 bits for a weight at both widths in place of 12, and nothing is lost.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.methods.quantise import QuantConf, dequantise, integers, largest_integer

_MARK = "quantised"  # attribute of a layer that holds {name of a weight: Quantised}
# W / s is computed in float32, so it may lie this far outside the half step of its integer.
_SLACK = 1e-3


@dataclass(frozen=True)
class Quantised:
    """A weight as integers times scale.

    Attributes:
        ints: (o, ...) int8.
        scale: () or (o, 1, ...) float32.
        bits: 8, 4 or 2.
    """

    ints: Tensor
    scale: Tensor
    bits: int

    def dequantised(self) -> Tensor:
        """The weight that the layer computes with, (o, ...) float32."""
        return dequantise(self.ints, self.scale)


def quantise_layer(
    layer: nn.Module, conf: QuantConf, scale: Tensor | None = None, name: str = "weight"
) -> None:
    """Put into a plain layer what ``conf`` makes of its weight, in place; keep the integers.

    At 32 bits nothing is done.

    Args:
        layer: has a parameter ``name``, (o, ...) float32, that is not quantised yet.
        conf: bits, and one scale for the layer or one a channel.
        scale: learnt, or of the larger weight of which this is a part; default: by maximum.
        name: which parameter.

    Raises:
        UserError: NaN or infinite values in the weight or the scale.
    """
    if conf.bits == 32:
        return
    weight: Any = getattr(layer, name)
    made = Quantised(*integers(weight, conf.bits, conf.per, scale), conf.bits)
    with torch.no_grad():
        weight.copy_(made.dequantised())
    setattr(layer, _MARK, {**getattr(layer, _MARK, {}), name: made})


def quantised_state(model: nn.Module) -> dict[str, Tensor | Quantised]:
    """The state dict of ``model`` with the integers of quantised layers in place of weights.

    Each tensor stands under the first of its names only.
    """
    marks: dict[str, Quantised] = {}
    for path, layer in model.named_modules():
        for name, made in getattr(layer, _MARK, {}).items():
            marks[f"{path}.{name}" if path else name] = made
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if name in marks:  # a tied layer may be marked under a later name only
            marks.setdefault(kept, marks[name])
    unique = set(first.values())
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: marks.get(name, tensor)
        for name, tensor in model.state_dict().items()
        if name in unique or name not in parameters
    }


def pack(ints: Tensor, bits: int) -> Tensor:
    """Pack integers, the first into the lowest bits of the first byte.

    Args:
        ints: (n,) int8, each from -2^(bits-1) to 2^(bits-1) - 1 (or from 0 to 2^bits - 1).
        bits: 8, 4, 2 or 1.

    Returns:
        (ceil(n bits / 8),) uint8.
    """
    fields = 8 // bits
    low = ints.contiguous().view(torch.uint8) & (2**bits - 1)
    low = F.pad(low, (0, -len(low) % fields)).view(-1, fields)
    return (low << _shifts(bits)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int, signed: bool = True) -> Tensor:
    """Return the ``count`` integers, int8, that ``pack`` made ``packed`` of."""
    low = (packed.unsqueeze(1) >> _shifts(bits)) & (2**bits - 1)
    found = low.flatten()[:count].view(torch.int8)
    if not signed or bits == 8:
        return found
    sign = 2 ** (bits - 1)
    return (found ^ sign) - sign


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` integers of ``bits`` bits."""
    return -(-count * bits // 8)


def _shifts(bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8)


def refine(fine: Quantised, coarse: Quantised) -> tuple[Tensor, int]:
    """Return what ``refined`` needs beside the finer integers to give the coarser ones.

    Args:
        fine: a weight at more bits.
        coarse: the same weight at fewer bits.

    Returns:
        Packed numbers, uint8, of which each takes as many bits as the second value says.

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
    """Return the weight at ``bits`` bits and ``scale`` from its finer integers and ``refine``'s."""
    low, high = _between(fine, scale, largest_integer(bits))
    unsure = low != high
    count = int(unsure.sum())
    if len(more) != packed_bytes(count, width):
        raise ValueError("what refines the integers is not of this weight")
    low[unsure] += unpack(more, width, count, signed=False)
    return Quantised(low, scale, bits)


def _between(fine: Quantised, scale: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The least and the largest integer, int8, at ``scale`` of weights with these finer ones.

    In float64, in which the same operations give the same result everywhere.
    """
    ratio = fine.scale.double() / scale.double()
    ends = []
    for side in (-1, 1):
        edge = (fine.ints.double() + side * (0.5 + _SLACK)) * ratio
        # Beyond the largest finer integer the weight was clipped: it may be any larger one.
        beyond = fine.ints * side == largest_integer(fine.bits)
        edge[beyond] = side * limit
        ends.append(edge.round().clamp(-limit, limit).to(torch.int8))
    return ends[0], ends[1]
