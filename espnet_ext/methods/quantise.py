"""Symmetric quantisation of weights to 8, 6, 4, 3 or 2 bits (arXiv 2406.10160, section 2).

A weight W is represented by integers times a scale: with Q = 2^(b-1) - 1 (127, 31, 7, 3 or 1),

    W^ = s clip(round(W / s), -Q, Q),    s = max|W| / Q    (scale by maximum)

or s is a trained parameter (learnt; LSQ, arXiv 1902.08153), or a multiple of the root mean square
of W (deviation): steps of equal length, which Huffman codes then shorten (``formats.huffman``).
There is one s for a weight, one for
each of its output channels, which are its first dimension, or one for each group of inputs of a
channel; those of groups are numbers of float16, so that they cost half a bit for groups of 32.
Training uses W^ instead of W
(``fake_quantise``), a deployed file holds the integers and scales (``integers``). Both agree to
the last bit, because both end in ``dequantise``.

Everything is computed in float32 (in float64 for a weight of that type), by operations that are
exact or correctly rounded on every device, but for the mean of a scale by deviation: the same
weight gives the same integers anywhere. In
float16 a scale would have few digits, or underflow. To quantise a part of a weight with the scale
of the whole, pass the scale of the whole (``scale_by_maximum``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from espnet_ext.errors import UserError
from espnet_ext.methods.tensors import refuse_not_finite

BITS = (32, 8, 6, 4, 3, 2)
type Per = Literal["tensor", "channel"] | int  # what has a scale; a number: inputs of a group
GROUP = 32  # weights of a group that shares a scale
_LEAST = 2.0**-20  # scale that float16 holds to 3 %


def check_bits(bits: Any) -> int:
    """Return ``bits``, or raise UserError if they are not among BITS."""
    if type(bits) is not int or bits not in BITS:
        known = ", ".join(map(str, BITS))
        raise UserError(f"bits must be one of {known}, not {bits!r}")
    return bits


def largest_integer(bits: int) -> int:
    """Return Q: integers of ``bits`` bits (fewer than 32, else UserError) are from -Q to Q."""
    if check_bits(bits) == 32:
        raise UserError("quantisation: a weight at 32 bits has no integers")
    return 2 ** (bits - 1) - 1


def scale_by_maximum(weight: Tensor, bits: int, per: Per = "channel") -> Tensor:
    """Return max|W| / Q, or 1 where a weight (o, ...) is all zeros; without gradient.

    It is a scalar () for ``per: tensor``, (o, 1, ...) with as many dimensions as the weight for
    ``channel``, and (o, groups, 1, ...) for groups of ``per`` inputs that follow one another;
    float32, or float64 for a weight of that type. A weight whose rows are no multiple of a group,
    or with a scale that float16 has not, gets one scale for each channel.
    """
    # A product: torch divides by a number exactly on CPUs but not on GPUs.
    return _scale_of(
        weight, per, lambda size, dim: size.amax(dim, True), 1.0 / largest_integer(bits)
    )


def first_scale(weight: Tensor, bits: int, per: Per = "channel") -> Tensor:
    """Return the initial learnt scale: 2 mean|W| / sqrt(Q) (arXiv 1902.08153, section 2.1).

    Arguments and shape are those of ``scale_by_maximum``; 1 where a weight is all zeros.
    """
    factor = 2.0 * largest_integer(bits) ** -0.5
    return _scale_of(weight, per, lambda size, dim: size.mean(dim, True), factor)


def scale_by_deviation(weight: Tensor, step: float, per: Per = "channel") -> Tensor:
    """Return ``step`` times the root mean square of W, or 1 where a weight is all zeros.

    ``weight``, ``per`` and the shape are those of ``scale_by_maximum``. The mean is computed in
    float64, so that another order of its terms hardly ever gives another float32.
    """

    def deviation(size: Tensor, dim: int) -> Tensor:
        return size.double().square().mean(dim, True).sqrt().to(size.dtype)

    return _scale_of(weight, per, deviation, step)


def _scale_of(weight: Tensor, per: Per, reduce: Callable, factor: float) -> Tensor:
    """The reduced magnitudes of each part of a weight that has a scale, times ``factor``."""
    size = _wide(weight.detach()).abs()
    if per == "tensor":
        return _usable(reduce(size.flatten(), 0).squeeze(0) * factor)
    groups = 1 if per == "channel" else group_count(weight, int(per))
    if groups > 1:
        found = reduce(size.reshape(len(size), groups, -1), 2) * factor
        if not ((found > 0) & (found < _LEAST)).any():
            shape = (len(size), groups, *[1] * (weight.dim() - 2))
            return _usable_half(found).view(shape)
    return _usable(reduce(size.flatten(1), 1) * factor).view(-1, *[1] * (weight.dim() - 1))


def group_count(weight: Tensor, size: int) -> int:
    """Groups of ``size`` inputs of each channel of a weight (o, ...); 1 if they do not fit."""
    inner = weight[0].numel()
    return inner // size if inner % size == 0 else 1


def fake_quantise(
    weight: Tensor, bits: int, per: Per = "channel", scale: Tensor | None = None
) -> Tensor:
    """Return the weight rounded to ``bits`` bits, in its type; at 32 bits the weight itself.

    The gradient is straight-through: for the weight that of the identity, 0 where the weight is
    clipped (never with a scale by maximum); for a learnt scale round(W/s) - W/s, +-Q where
    clipped, times 1 / sqrt(weights of that scale x Q) (arXiv 1902.08153, equations 3 and 5 and
    section 2.2). A NaN stays NaN, so that the loss shows it.

    Args:
        weight: (o, ...), floating point.
        bits: one of BITS.
        per: ``tensor``, ``channel`` or the inputs of a group; ignored if ``scale`` is given.
        scale: () or (o, 1, ...) or of groups, learnt or that of a larger weight; default: by
            maximum. Its sign is ignored.
    """
    if bits == 32:
        return weight
    limit = largest_integer(bits)
    scale = scale_by_maximum(weight, bits, per) if scale is None else _stored(scale)
    rows = _wide(weight)
    if has_groups(scale.shape):
        rows = rows.reshape(len(rows), scale.shape[1], -1)
        scale = scale.reshape(len(rows), -1, 1)
    return _FakeQuantise.apply(rows, scale, limit).view(weight.shape).to(weight.dtype)


def integers(
    weight: Tensor, bits: int, per: Per = "channel", scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the integers (int8, in the shape of the weight) and their scale.

    Arguments are those of ``fake_quantise``, whose result is ``dequantise`` of this result in the
    type of the weight.

    Raises:
        UserError: NaN or infinite values in the weight or the scale, or bits without integers.
    """
    limit = largest_integer(bits)
    weight = _wide(weight.detach())
    refuse_not_finite(weight, "a weight")
    scale = scale_by_maximum(weight, bits, per) if scale is None else scale
    refuse_not_finite(scale, "a scale")
    scale = _stored(scale.detach())
    if not has_groups(scale.shape):
        return _round(weight / scale, limit).to(torch.int8), scale
    rows = weight.reshape(len(weight), scale.shape[1], -1)
    ints = _round(rows / scale.reshape(len(rows), -1, 1), limit).to(torch.int8)
    return ints.view(weight.shape), scale


def grouped_integers(weight: Tensor, bits: int, size: int = GROUP) -> tuple[Tensor, Tensor]:
    """Return integers (int8, in the shape of the weight) and a scale for each group of inputs.

    A group is ``size`` weights of one output channel that follow one another. Of 16 scales from
    that by maximum downwards, a group gets the one that leaves the least squared error. Scales are
    numbers of float16, in float32. A weight whose rows are no multiple of ``size``, or with a
    scale that float16 has not, gets a float32 scale for each output channel (``integers``).

    Raises:
        UserError: NaN or infinite values, or bits without integers.
    """
    limit = largest_integer(bits)
    weight = _wide(weight.detach())
    refuse_not_finite(weight, "a weight")
    groups = group_count(weight, size)
    if groups == 1:
        return integers(weight, bits)
    rows = weight.reshape(len(weight), groups, size)
    widest = rows.abs().amax(2, keepdim=True) * (1.0 / limit)
    if ((widest > 0) & (widest < _LEAST)).any():
        return integers(weight, bits)
    best = torch.full_like(widest, torch.inf)
    scale = torch.ones_like(widest)
    for step in range(16):
        tried = _usable_half(widest * (1 - step / 40))
        error = (_round(rows / tried, limit) * tried - rows).square().sum(2, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
    ints = _round(rows / scale, limit).to(torch.int8).view(weight.shape)
    return ints, scale.view(len(weight), -1, *[1] * (weight.dim() - 2))


def _stored(scale: Tensor) -> Tensor:
    """A scale as files hold it: positive, and a number of float16 if it is of a group."""
    scale = _wide(scale).abs()
    return _usable_half(scale) if has_groups(scale.shape) else _usable(scale)


def _usable_half(scale: Tensor) -> Tensor:
    """Round a scale to float16, and replace zero by 1: such a group is all zeros and stays so."""
    half = as_half(scale)
    return torch.where(half == 0, torch.ones_like(scale), half)


def as_half(tensor: Tensor) -> Tensor:
    """The nearest numbers of float16, in the type of the tensor; the gradient passes unchanged."""
    return tensor + (tensor.half().to(tensor.dtype) - tensor).detach()


def has_groups(scale_shape: Sequence[int]) -> bool:
    """True for the shape of a scale of ``grouped_integers``."""
    return len(scale_shape) > 1 and scale_shape[1] > 1


def dequantise(ints: Tensor, scale: Tensor) -> Tensor:
    """Return integers (o, ...) times scale, in the type of the scale.

    The scale is (), (o, 1, ...), or of groups of inputs (o, groups, 1, ...).
    """
    if not has_groups(scale.shape):
        return ints.to(scale.dtype) * scale
    rows = ints.reshape(len(ints), scale.shape[1], -1).to(scale.dtype)
    return (rows * scale.reshape(len(ints), -1, 1)).view(ints.shape)


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
            # A scale by maximum clips nothing: the largest ratio is Q up to rounding. One by
            # deviation clips what is beyond Q steps.
            return gradient * (ratio.abs() <= ctx.limit + 0.5), None, None
        inside = ratio.abs() <= ctx.limit
        rounded = _round(ratio, ctx.limit)
        slope = torch.where(inside, rounded - ratio, rounded)
        factor = (weight.numel() / scale.numel() * ctx.limit) ** -0.5
        to_scale = (gradient * slope).sum_to_size(scale.shape) * factor
        return gradient * inside, to_scale, None


def _round(ratio: Tensor, limit: int) -> Tensor:
    """Round to the nearest whole number (half to even), from -limit to limit."""
    return ratio.round().clamp(-limit, limit)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _usable(scale: Tensor) -> Tensor:
    """Replace a scale that is zero or nearly by 1: such a weight is all zeros and stays so."""
    tiny = torch.finfo(scale.dtype).tiny
    return torch.where(scale < tiny, torch.ones_like(scale), scale)
