"""Symmetric quantisation of weights to 8, 4 or 2 bits (arXiv 2406.10160, section 2).

A weight W is held as integers times a scale: with Q = 2^(b-1) - 1 (127, 7 or 1),

    W^ = s clip(round(W / s), -Q, Q),    s = max|W| / Q    (scale by maximum)

or s is a parameter that is trained (learnt; LSQ, arXiv 1902.08153). There is one s for a weight or
one for each of its output channels, which are its first dimension. Training sees W^ in place of
W (``fake_quantise``), a deployed file holds the integers and scales (``integers``), and both are
the same to the last bit, because both end in ``dequantise``.

Everything is computed in the weight's own type and by operations that are exact or correctly
rounded on every device: the same weight gives the same integers anywhere. A part of a weight that
shall have the scale of the whole takes the scale from the whole (``scale_by_maximum``).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet_ext.errors import UserError

BITS = (32, 8, 4, 2)
PER = ("tensor", "channel")
SCALES = ("maximum", "learnt")


@dataclass(frozen=True)
class QuantConf:
    """How a weight is quantised.

    Attributes:
        bits: 32 (not at all), 8, 4 or 2.
        per: one scale for the whole ``tensor``, or one for each output ``channel``.
        scale: by the ``maximum`` of the weight, or ``learnt``.
    """

    bits: int
    per: str = "channel"
    scale: str = "maximum"

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("per", PER), ("scale", SCALES)):
            value = getattr(self, name)
            if value not in known or isinstance(value, bool | float):
                words = ", ".join(str(word) for word in known)
                raise UserError(f"quantisation: {name} must be one of {words}, not {value!r}")


def largest_integer(bits: int) -> int:
    """Q of ``bits`` bits: integers are from -Q to Q.

    Raises:
        UserError: bits that are not offered, or 32, which has no integers.
    """
    QuantConf(bits)
    if bits == 32:
        raise UserError("quantisation: a weight at 32 bits has no integers")
    return 2 ** (bits - 1) - 1


def scale_by_maximum(weight: Tensor, bits: int, per: str = "channel") -> Tensor:
    """Return max|W| / Q, that of no weight but zeros being 1.

    Args:
        weight: (o, ...).
        bits: 8, 4 or 2.
        per: ``tensor`` or ``channel``.

    Returns:
        Scale of shape (), or (o, 1, ...) of as many dimensions as the weight; without gradient.
    """
    size = weight.detach().abs()
    maximum = size.amax() if per == "tensor" else size.amax(_inner(weight), keepdim=True)
    # A product, since torch divides by a number exactly on CPUs but not on GPUs.
    return _usable(maximum * (1.0 / largest_integer(bits)))


def first_scale(weight: Tensor, bits: int, per: str = "channel") -> Tensor:
    """Return what a learnt scale starts at: 2 mean|W| / sqrt(Q) (arXiv 1902.08153, section 2.1).

    Of the shape that ``scale_by_maximum`` gives, and 1 where a weight is all zeros.
    """
    size = weight.detach().abs()
    mean = size.mean() if per == "tensor" else size.mean(_inner(weight), keepdim=True)
    return _usable(mean * (2.0 * largest_integer(bits) ** -0.5))


def fake_quantise(
    weight: Tensor, bits: int, per: str = "channel", scale: Tensor | None = None
) -> Tensor:
    """Return the weight as ``bits`` bits hold it; at 32 bits the weight itself.

    The gradient is straight-through: to the weight that of the identity, 0 where the weight is
    clipped (never with a scale by maximum); to a learnt scale round(W/s) - W/s, +-Q where
    clipped, times 1 / sqrt(weights of that scale x Q) (arXiv 1902.08153, equations 3 and 5 and
    section 2.2). A NaN stays one, so that the loss shows it.

    Args:
        weight: (o, ...), floating point.
        bits: 32, 8, 4 or 2.
        per: ``tensor`` or ``channel``; not looked at where ``scale`` is given.
        scale: () or (o, 1, ...), learnt or that of a larger weight; default: by maximum. Its
            sign does not matter.
    """
    if bits == 32:
        return weight
    limit = largest_integer(bits)
    scale = scale_by_maximum(weight, bits, per) if scale is None else _usable(scale.abs())
    return _FakeQuantise.apply(weight, scale, limit)


def integers(
    weight: Tensor, bits: int, per: str = "channel", scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the integers (int8, of the weight's shape) and the scale they are multiplied by.

    The arguments are those of ``fake_quantise``, and its result is ``dequantise`` of this one's.

    Raises:
        UserError: NaN or infinite values in the weight or the scale, or bits without integers.
    """
    limit = largest_integer(bits)
    weight = weight.detach()
    _refuse(weight, "weight")
    if scale is None:
        scale = scale_by_maximum(weight, bits, per)
    _refuse(scale, "scale")
    scale = _usable(scale.detach().abs())
    return _round(weight / scale, limit).to(torch.int8), scale


def dequantise(ints: Tensor, scale: Tensor) -> Tensor:
    """Return integers times scale, in the scale's type.

    Args:
        ints: (o, ...), any type.
        scale: () or (o, 1, ...).
    """
    return ints.to(scale.dtype) * scale


class _FakeQuantise(torch.autograd.Function):
    """``dequantise(round(W / s), s)`` with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, limit: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.limit = limit
        return dequantise(_round(weight / scale, limit), scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, scale = ctx.saved_tensors
        ratio = weight / scale
        if not ctx.needs_input_grad[1]:
            # A scale by maximum clips nothing: its largest ratio is Q up to rounding.
            return gradient * (ratio.abs() <= ctx.limit + 0.5), None, None
        inside = ratio.abs() <= ctx.limit
        rounded = _round(ratio, ctx.limit)
        slope = torch.where(inside, rounded - ratio, rounded)
        factor = (weight.numel() / scale.numel() * ctx.limit) ** -0.5
        to_scale = (gradient * slope).sum_to_size(scale.shape) * factor
        return gradient * inside, to_scale, None


def _round(ratio: Tensor, limit: int) -> Tensor:
    """Nearest whole number (of two the even one) from -limit to limit."""
    return ratio.round().clamp(-limit, limit)


def _inner(weight: Tensor) -> list[int]:
    """All dimensions but that of output channels."""
    return list(range(1, weight.dim()))


def _usable(scale: Tensor) -> Tensor:
    """1 in place of a scale that is zero or nearly: such a weight is all zeros, and stays so."""
    tiny = torch.finfo(scale.dtype).tiny
    return torch.where(scale < tiny, torch.ones_like(scale), scale)


def _refuse(tensor: Tensor, name: str) -> None:
    """Raise UserError if there are NaN or infinite values in a tensor."""
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"quantisation: a {name} holds NaN or infinite values; train again or take another "
            "epoch"
        )
