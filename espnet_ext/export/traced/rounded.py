"""Layers with integers instead of weights, for graphs that torch traces."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.errors import UserError
from espnet_ext.export.graphs.products import (
    Products,
    blocks_of,
    in_products,
    packed_blocks,
    row_scales,
    zeros,
)
from espnet_ext.formats.bits import Quantised
from espnet_ext.methods.quantise import grouped_integers, has_groups, integers
from espnet_ext.methods.shared_linear import SharedLinear, with_residual
from espnet_ext.methods.sites import is_linear

_TOKENWISE = ("decoder", "joint_network")  # parts most of whose products are of one row


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
    """x W^T + b for a weight of 8 bits with a scale for each output: DynamicQuantizeMatMul.

    ``zero``: the byte of 0, of signed ones left out; ``stored``: bytes (i, o) and scales (o,).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *stored: Any):
        return F.linear(x, weight, bias)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, signed: bool, zero: Any, *stored: Any):
        left_out = g.op("prim::Constant")
        left_out.setType(torch.OptionalType.ofTensor())
        more = [left_out if signed else zero, left_out if bias is None else bias]
        return g.op("com.microsoft::DynamicQuantizeMatMul", x, *stored, *more)


class _Widened(torch.autograd.Function):
    """x W^T + b for a weight below 8 bits: as 8-bit numbers that a session makes of it.

    With many rows 4 bits are slower. ``stored``: integers (o, groups, n), their scales
    (o, groups, 1), and those of the numbers (o,), see ``graphs.products.row_scales``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *stored: Any):
        return F.linear(x, weight, bias)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, signed: bool, zero: Any, *stored: Any):
        ints, groups, rows = stored
        numbers = _Product.symbolic(g, ints, groups)
        found = g.op("QuantizeLinear", numbers, rows, zero, axis_i=0)
        flat = g.op("Reshape", found, g.op("Constant", value_t=torch.tensor([0, -1])))
        columns = g.op("Transpose", flat, perm_i=[1, 0])
        return _Channels.symbolic(g, x, weight, bias, signed, zero, columns, rows)


class _Product(torch.autograd.Function):
    """Integers times scale: computed by a session when it is made."""

    @staticmethod
    def forward(ctx: Any, ints: Tensor, scale: Tensor):
        return ints.float() * scale

    @staticmethod
    def symbolic(g: Any, ints: Any, scale: Any) -> Any:
        return g.op("Mul", g.op("Cast", ints, to_i=TensorProto.FLOAT), scale)


class RoundedLinear(nn.Module):
    """A linear layer, or a pointwise convolution, whose weight is integers.

    ``many``: its products are of many rows.
    """

    def __init__(self, layer: Any, weight: Quantised, products: Products, many: bool):
        super().__init__()
        self.pointwise = isinstance(layer, nn.Conv1d)
        self.bias, self.products = layer.bias, products
        flat = Quantised(weight.ints.flatten(1), weight.scale, weight.bits)
        self.register_buffer("numbers", weight.dequantised().flatten(1), persistent=False)
        rows, inputs = flat.ints.shape
        bytewise, size = products != "float32", blocks_of(flat)
        self.register_buffer("zero", zeros(rows, products))
        if many and bytewise and weight.bits < 8:
            self.kind = "widened"
            self.stored = RoundedTensor(flat)
            self.register_buffer("rows", row_scales(flat))
        elif size is not None:
            self.kind = "blocks"
            packed, scale, bits = packed_blocks(flat, size)
            self.conf = {"K": inputs, "N": rows, "bits": bits, "block_size": size}
            self.conf["accuracy_level"] = 4 if bytewise else 0
            self.register_buffer("packed", packed)
            self.register_buffer("scale", scale.flatten())
        elif bytewise and weight.bits > 4 and not has_groups(flat.scale.shape):
            self.kind = "channels"
            self.register_buffer("ints", in_products(flat.ints.T.contiguous(), products))
            self.register_buffer("scale", weight.scale.flatten().expand(rows).contiguous())
        else:
            self.kind = "floats"
            self.stored = RoundedTensor(flat)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., o), or (batch, i, frames) to (batch, o, frames)."""
        y = self._product(x.transpose(1, 2) if self.pointwise else x)
        return y.transpose(1, 2) if self.pointwise else y

    def _product(self, x: Tensor) -> Tensor:
        given = x, self.numbers, self.bias, self.products == "int8", self.zero
        if self.kind == "widened":
            return _Widened.apply(*given, self.stored.ints, self.stored.scale, self.rows)
        if self.kind == "channels":
            return _Channels.apply(*given, self.ints, self.scale)
        if self.kind == "blocks":
            y = _Blocks.apply(x, self.packed, self.scale, self.numbers, self.conf)
        else:
            y = x @ self.stored().T
        return y if self.bias is None else y + self.bias


class RoundedTensor(nn.Module):
    """A tensor that is integers times scale; calling it gives the numbers."""

    def __init__(self, weight: Quantised):
        super().__init__()
        self.shape, rows = weight.ints.shape, len(weight.ints)
        groups = max(1, weight.scale.numel() // rows)
        self.register_buffer("ints", weight.ints.reshape(rows, groups, -1))
        whole = not weight.scale.dim()
        self.register_buffer("scale", weight.scale.reshape(() if whole else (rows, groups, 1)))

    def forward(self) -> Tensor:
        """Compute the numbers, of the shape of the integers."""
        return _Product.apply(self.ints, self.scale).reshape(self.shape)


class RoundedConvolution(nn.Module):
    """A convolution whose weight is integers times scale."""

    def __init__(self, layer: Any, weight: Quantised):
        super().__init__()
        self.layer, self.numbers = layer, RoundedTensor(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer does."""
        return self.layer._conv_forward(x, self.numbers(), self.layer.bias)


class RoundedEmbedding(nn.Module):
    """An embedding whose table is integers times scale."""

    def __init__(self, weight: Quantised):
        super().__init__()
        self.numbers = RoundedTensor(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look tokens up."""
        return F.embedding(tokens, self.numbers())


class RoundedLSTM(nn.Module):
    """A layer of an LSTM, some of whose tensors are integers times scale."""

    def __init__(self, layer: nn.LSTM, weights: Mapping[str, Quantised], products: Products):
        super().__init__()
        self.layer = layer
        self.numbers = nn.ModuleDict({name: RoundedTensor(w) for name, w in weights.items()})
        self.one_step = layer.batch_first and not layer.proj_size
        self.input, self.recurrent = (self._gates(end, weights, products) for end in ("ih", "hh"))

    def _gates(self, end: str, weights: Mapping[str, Quantised], products: Products) -> nn.Module:
        """What the gates get from the input (``ih``) or from the state (``hh``)."""
        bias = getattr(self.layer, f"bias_{end}_l0") if self.layer.bias else None
        made = _layer_of(getattr(self.layer, f"weight_{end}_l0"), bias)
        rounded = weights.get(f"weight_{end}_l0")
        return made if rounded is None else RoundedLinear(made, rounded, products, many=False)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:
        """Run the layer on (batch, n, i)."""
        if self.one_step and x.shape[1] == 1:
            return self._step(x, *hx)
        names = [name for name, _ in self.layer.named_parameters()]
        flat = [self.numbers[n]() if n in self.numbers else getattr(self.layer, n) for n in names]
        options = self.layer.bias, 1, 0.0, False, False, self.layer.batch_first
        y, hidden, cell = torch._VF.lstm(x, hx, flat, *options)  # type: ignore[attr-defined]
        return y, (hidden, cell)

    def _step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, tuple]:
        """One step, whose products have integers: the operator LSTM reads its weights as floats."""
        gates = self.input(x) + self.recurrent(hidden.transpose(0, 1))
        enter, keep, new, show = gates.chunk(4, -1)
        cell = keep.sigmoid() * cell.transpose(0, 1) + enter.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        return hidden, (hidden.transpose(0, 1), cell.transpose(0, 1))


class RoundedShared(nn.Module):
    """A layer of a shared base of integers, and a residual; see ``methods.shared_linear``."""

    def __init__(self, base: nn.Module, layer: SharedLinear, factors: Mapping[str, Quantised]):
        super().__init__()
        self.base, self.pointwise, self.diagonal = base, layer.base.dim() == 3, layer.diagonal
        self.down, self.up = layer.down, layer.up
        self.factors = nn.ModuleDict({name: RoundedTensor(w) for name, w in factors.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., o), or (batch, i, frames) to (batch, o, frames)."""
        numbers = {name: factor() for name, factor in self.factors.items()}
        down, up = numbers.get("down", self.down), numbers.get("up", self.up)
        flat = x.transpose(1, 2) if self.pointwise else x
        y = self.base(x)
        y = y.transpose(1, 2) if self.pointwise else y
        y = with_residual(y, flat, down, up, self.diagonal)
        return y.transpose(1, 2) if self.pointwise else y


def is_rounded(layer: nn.Module) -> bool:
    """True for a layer whose weight is rounded on request: not for depthwise convolutions."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear | nn.Embedding | nn.LSTM | SharedLinear)


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

    Layers that share a weight share its integers.

    Args:
        model: plain or the variant ``shared``, with the products of integers and scales as weights.
        state: of the packed file.
        products: see ``graphs.graph.Graph``.

    Returns:
        How many weights are in how many bits.

    Raises:
        UserError: a rounded weight of another kind of layer.
    """
    counted: Counter[int] = Counter()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rounded: dict[int, Quantised] = {}  # by identity of the parameter
    for name, weight in state.items():
        if isinstance(weight, Quantised):
            counted[weight.bits] += 0 if id(parameters[name]) in rounded else weight.ints.numel()
            rounded[id(parameters[name])] = weight
    made: dict[tuple, nn.Module] = {}  # by identities of the layer's parameters
    for place, holder in list(model.named_modules()):
        many = not place.startswith(_TOKENWISE)
        for attribute, layer in list(holder._modules.items()):
            direct = {} if layer is None else layer._parameters
            found = {n: rounded[id(p)] for n, p in direct.items() if id(p) in rounded}
            if layer is not None and found:
                holder._modules[attribute] = _rounded(layer, found, products, many, made)
    return counted


def _rounded(
    layer: nn.Module,
    weights: Mapping[str, Quantised],
    products: Products,
    many: bool,
    made: dict[tuple, nn.Module],
) -> nn.Module:
    """The layer that replaces one; ``made``: those for others, which are used again.

    ``many``: its products are of many rows.
    """
    key = tuple(map(id, layer._parameters.values()))
    if key in made:
        return made[key]
    weight = weights.get("weight")
    if isinstance(layer, SharedLinear):
        factors = {name: one for name, one in weights.items() if name != "weight"}
        base: nn.Module = _layer_of(layer.base, layer.bias)
        if weight is not None:
            base = _rounded(base, {"weight": weight}, products, many, made)
        new: nn.Module = RoundedShared(base, layer, factors)
    elif isinstance(layer, nn.LSTM) and layer.num_layers == 1 and not layer.bidirectional:
        new = RoundedLSTM(layer, weights, products)
    elif weight is not None and is_linear(layer):
        new = RoundedLinear(layer, weight, products, many)
    elif weight is not None and isinstance(layer, nn.Conv1d | nn.Conv2d):
        new = RoundedConvolution(layer, weight)
    elif weight is not None and isinstance(layer, nn.Embedding):
        new = RoundedEmbedding(weight)
    else:
        raise UserError(
            f"a rounded {next(iter(weights))} of {type(layer).__name__} is not exported"
        )
    made[key] = new
    return new


def _layer_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """A linear layer, or a pointwise convolution, with these parameters."""
    outputs, inputs = weight.shape[:2]
    made: Any = (
        nn.Conv1d(inputs, outputs, 1, bias=False)
        if weight.dim() == 3
        else nn.Linear(inputs, outputs, bias=False)
    )
    made.weight, made.bias = weight, bias
    return made
