"""Layers with integers in the place of weights, for graphs that torch traces."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espnet_ext.export.graph import ZERO, Products, blocks_of, in_products, packed_blocks
from espnet_ext.formats.bits import Quantised
from espnet_ext.methods.quantise import grouped_integers, integers
from espnet_ext.methods.sites import is_linear


class _Blocks(torch.autograd.Function):
    """x W^T for a weight in blocks of inputs that share a scale: MatMulNBits in a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, weight: Tensor, conf: dict):
        return x @ weight.T

    @staticmethod
    def symbolic(g: Any, x: Any, packed: Any, scale: Any, weight: Any, conf: dict) -> Any:
        options = {f"{key}_i": value for key, value in conf.items()}
        return g.op("com.microsoft::MatMulNBits", x, packed, scale, **options)


class _Channels(torch.autograd.Function):
    """x W^T for a weight of 8 bits with a scale for each output: DynamicQuantizeMatMul."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *bytewise: Tensor):
        return x @ weight.T

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, *bytewise: Any) -> Any:
        return g.op("com.microsoft::DynamicQuantizeMatMul", x, *bytewise)


class _Product(torch.autograd.Function):
    """Integers times scale: computed by a session when it is made."""

    @staticmethod
    def forward(ctx: Any, ints: Tensor, scale: Tensor):
        return ints.float() * scale

    @staticmethod
    def symbolic(g: Any, ints: Any, scale: Any) -> Any:
        return g.op("Mul", g.op("Cast", ints, to_i=1), scale)


class RoundedLinear(nn.Module):
    """A linear layer, or a pointwise convolution, whose weight is integers."""

    def __init__(self, layer: Any, weight: Quantised, products: Products):
        super().__init__()
        self.pointwise = isinstance(layer, nn.Conv1d)
        self.bias, self.products = layer.bias, products
        flat = Quantised(weight.ints.flatten(1), weight.scale, weight.bits)
        self.register_buffer("numbers", weight.dequantised().flatten(1), persistent=False)
        self.size = blocks_of(flat)
        self.conf: dict[str, int] = {}
        rows, inputs = flat.ints.shape
        if self.size is not None:
            packed, scale, bits = packed_blocks(flat, self.size)
            self.conf = {"K": inputs, "N": rows, "bits": bits, "block_size": self.size}
            self.conf["accuracy_level"] = 0 if products == "float32" else 4
            self.register_buffer("packed", packed)
            self.register_buffer("scale", scale.flatten())
        else:
            self.register_buffer("ints", in_products(flat.ints.T.contiguous(), products))
            self.register_buffer("scale", weight.scale.flatten().expand(rows).contiguous())
            self.register_buffer("zero", torch.full((rows,), ZERO, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., o), or (batch, i, frames) to (batch, o, frames)."""
        x = x.transpose(1, 2) if self.pointwise else x
        if self.size is not None:
            y = _Blocks.apply(x, self.packed, self.scale, self.numbers, self.conf)
        elif self.products == "float32":
            y = x @ _Product.apply(self.ints, self.scale)
        else:
            zero = (self.zero,) if self.products == "uint8" else ()
            y = _Channels.apply(x, self.numbers, self.ints, self.scale, *zero)
        y = y if self.bias is None else y + self.bias
        return y.transpose(1, 2) if self.pointwise else y


class RoundedConvolution(nn.Module):
    """A convolution whose weight is integers times scale."""

    def __init__(self, layer: Any, weight: Quantised):
        super().__init__()
        self.layer = layer
        shape = (-1, *[1] * (weight.ints.dim() - 1)) if weight.scale.dim() else ()
        if weight.scale.numel() > len(weight.ints):  # of groups: one for each number
            grouped = weight.scale.reshape(len(weight.ints), -1, 1)
            size = weight.ints[0].numel() // grouped.shape[1]
            scale = grouped.expand(-1, -1, size).reshape(weight.ints.shape).contiguous()
        else:
            scale = weight.scale.reshape(shape)
        self.register_buffer("ints", weight.ints)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer does."""
        weight = _Product.apply(self.ints, self.scale)
        return self.layer._conv_forward(x, weight, self.layer.bias)


def round_weight(weight: nn.Parameter, bits: int) -> Quantised:
    """Round a weight in place.

    With 8 bits there is a scale for each output, with 4 one for 32 inputs.

    Returns:
        Its integers and scales.
    """
    found = integers if bits == 8 else grouped_integers
    made = Quantised(*found(weight, bits), bits)
    with torch.no_grad():
        weight.copy_(made.dequantised())
    return made


def use_integers(model: nn.Module, state: Mapping[str, Any], products: Products) -> Counter[int]:
    """Replace the layers of a model whose weights are integers in a packed file, in place.

    Args:
        model: plain, with the products of integers and scales as weights.
        state: of the packed file.
        products: see ``graph.Graph``.

    Returns:
        How many weights are in how many bits; a convolution's take a byte each.

    Raises:
        KeyError: a rounded weight of another kind of layer.
    """
    counted: Counter[int] = Counter()
    for name, weight in state.items():
        if not isinstance(weight, Quantised):
            continue
        owner, _, _ = name.rpartition(".")
        parent, _, attribute = owner.rpartition(".")
        layer: Any = model.get_submodule(owner)
        holder: Any = model.get_submodule(parent)
        made: nn.Module
        if is_linear(layer):
            made = RoundedLinear(layer, weight, products)
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            made = RoundedConvolution(layer, weight)
        else:
            raise KeyError(name)
        counted[weight.bits] += weight.ints.numel()
        if attribute.isdecimal():
            holder[int(attribute)] = made
        else:
            setattr(holder, attribute, made)
    return counted
