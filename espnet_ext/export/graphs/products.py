"""Integers as products of ONNX Runtime read them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from espnet_ext.export.runtime.family_weights import pairs
from espnet_ext.formats.bits import Quantised, Stored
from espnet_ext.methods.quantise import has_groups

_BLOCKS = (256, 128, 64, 32, 16)  # inputs that may share a scale in MatMulNBits
INT4, INT8, UINT8 = TensorProto.INT4, TensorProto.INT8, TensorProto.UINT8

type Weight = Tensor | Stored
# Numbers in the products of rounded weights. With the two of 8 bits activations are rounded too.
# x86 processors without VNNI add two products with int8 in 16 bits, cut, unless a session's option
# forbids it; with uint8 they are right everywhere, and slower where there is VNNI.
type Products = Literal["float32", "uint8", "int8"]
ZERO = 128  # of uint8


def in_pairs(name: str, values: np.ndarray) -> onnx.TensorProto:
    """Integers of at most 4 bits as a tensor of a graph, two to a byte."""
    return helper.make_tensor(name, INT4, values.shape, pairs(values), raw=True)


def packed_blocks(weight: Quantised, block: int) -> tuple[Tensor, Tensor, int]:
    """A weight in the layout of MatMulNBits: of o outputs and n blocks of inputs.

    Returns:
        Integers (o, n, bytes of a block), uint8, two to a byte of 4 bits; scales (o, n), float32;
        4 or 8 bits.
    """
    rows = len(weight.ints)
    flat = weight.ints.reshape(rows, -1)
    bits = 8 if weight.bits > 4 else 4
    moved = _unsigned(flat, 2 ** (bits - 1))
    if bits == 4:
        moved = moved[:, 0::2] | moved[:, 1::2] << 4
    count = flat.shape[1] // block
    groups = weight.scale.reshape(rows, -1)
    scale = groups.repeat_interleave(count // groups.shape[1], 1)
    return moved.reshape(rows, count, -1).contiguous(), scale.contiguous(), bits


def row_scales(weight: Quantised) -> Tensor:
    """Scales (o,) with which 8-bit numbers hold the numbers of a weight of fewer bits."""
    widest = weight.dequantised().reshape(len(weight.ints), -1).abs().amax(1)
    return widest.clamp_min(1e-9) / 127


def zeros(outputs: int, products: Products) -> Tensor:
    """The byte of 0 for each of so many outputs."""
    if products == "int8":
        return torch.zeros(outputs, dtype=torch.int8)
    return torch.full((outputs,), ZERO, dtype=torch.uint8)


def in_products(ints: Tensor, products: Products) -> Tensor:
    """Integers, int8, as products of that kind read them."""
    return _unsigned(ints, ZERO) if products == "uint8" else ints


def _unsigned(ints: Tensor, zero: int) -> Tensor:
    """Integers as uint8, in which ``zero`` means 0."""
    return (ints.to(torch.int16) + zero).to(torch.uint8)


def blocks_of(weight: Quantised) -> int | None:
    """Inputs that share a scale, for MatMulNBits; None if the weight does not fit."""
    if not has_groups(weight.scale.shape) and weight.bits > 4:
        return None
    inputs = weight.ints[0].numel()
    if not weight.scale.dim():
        return None
    group = inputs * len(weight.ints) // weight.scale.numel()
    return next((size for size in _BLOCKS if group % size == 0), None)


def joined(weights: Sequence[Weight]) -> Weight:
    """Weights (o, i) of the same inputs one below the other, as one; integers stay integers."""
    whole = [w for w in weights if isinstance(w, Quantised)]
    # One scale of a whole weight is that of each of its rows.
    scales = [w.scale if w.scale.dim() else w.scale.expand(len(w.ints), 1) for w in whole]
    kinds = {(w.bits, scale.shape[1:]) for w, scale in zip(whole, scales, strict=True)}
    if len(whole) == len(weights) and len(kinds) == 1:
        ints = torch.cat([w.ints for w in whole])
        return Quantised(ints, torch.cat(scales), whole[0].bits)
    return torch.cat([w if isinstance(w, Tensor) else w.dequantised() for w in weights])
