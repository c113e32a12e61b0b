"""Builds ONNX graphs node by node, with weights in the bits that a packed file has.

A weight is stored in the graph as integers and scales of its file. What ONNX Runtime cannot
multiply as it is stored is computed from them by operators on constants, which a session runs once,
when it is made: the file stays small.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from espnet_ext.export.graphs.products import (
    INT4,
    ZERO,
    Products,
    Weight,
    blocks_of,
    in_pairs,
    in_products,
    packed_blocks,
    row_scales,
    zeros,
)
from espnet_ext.formats.bits import Quantised
from espnet_ext.methods.codes import CODES, Coded
from espnet_ext.methods.positions import Sinusoids
from espnet_ext.methods.quantise import has_groups

OPSET = 21
_IR_VERSION = 10
_MICROSOFT = "com.microsoft"  # operators of ONNX Runtime, not of ONNX
_END = np.iinfo(np.int64).max  # of a slice
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class Graph:
    """A graph under construction. Tensors are named by text.

    Attributes:
        rounded: how many weights are stored in each number of bits.
        products: of rounded weights.
        many: products are of many rows (an encoder's frames): then 4 bits are slower than 8, so a
            session makes 8-bit numbers of them.
    """

    def __init__(self, products: Products = "uint8", many: bool = False):
        self.products, self.many = products, many
        self.rounded: Counter[int] = Counter()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._known: dict[tuple, str] = {}
        self._seen: set[str] = set()  # names of integers, which layers may share
        self._count = 0  # names that were given

    def op(
        self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Add an operator with one output; return its name. Without ``out`` equal ones are one."""
        key = (kind, inputs, domain, repr(attributes))
        if out is None and key in self._known:
            return self._known[key]
        outs = [out or self._name(kind)]
        self._known[key] = self.ops(kind, *inputs, outs=outs, domain=domain, **attributes)[0]
        return outs[0]

    def ops(
        self, kind: str, *inputs: str, outs: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add an operator with several outputs; return their names."""
        names = list(outs)
        name = self._name(f"node_{kind}")
        made = helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes)
        self._nodes.append(made)
        return names

    def microsoft(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add an operator of ONNX Runtime that ONNX lacks."""
        return self.op(kind, *inputs, out=out, domain=_MICROSOFT, **attributes)

    def split(self, x: str, count: int, axis: int) -> list[str]:
        """Cut a tensor into equal parts."""
        outs = [self._name("Split") for _ in range(count)]
        return self.ops("Split", x, outs=outs, axis=axis, num_outputs=count)

    def constant(self, value: Any, kind: Any = None) -> str:
        """A constant; equal ones are stored once."""
        array = np.array(value, kind, order="C")
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._known:
            name = self._known[key] = self._name("constant")
            self._constants[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def ints(self, *values: int) -> str:
        """A constant (n,) of int64."""
        return self.constant(values, np.int64)

    def slice(self, x: str, start: str, end: str | None, axis: int, step: int = 1) -> str:
        """Part of a tensor along an axis; ``start`` and ``end`` are tensors (1,)."""
        end = self.ints(_END) if end is None else end
        return self.op("Slice", x, start, end, self.ints(axis), self.ints(step))

    def linear(self, x: str, weight: Weight, bias: Tensor | None = None) -> str:
        """Return x W^T + b for x (..., i) and a weight (o, ...) of i inputs."""
        bytewise = self.products != "float32"
        added = "" if bias is None else self.constant(bias.float().numpy())
        if isinstance(weight, Quantised) and self.many and bytewise and weight.bits < 8:
            return self._widened(x, weight, added)
        if isinstance(weight, Quantised) and (block := blocks_of(weight)):
            y = self._blockwise(x, weight, block)
        elif isinstance(weight, Quantised) and self._in_columns(weight):
            return self.bytewise(x, *self._columns(weight), len(weight.ints), added)
        else:
            y = self.op("MatMul", x, self.op("Transpose", self.matrix(weight), perm=[1, 0]))
        return self.op("Add", y, added) if added else y

    def bytewise(self, x: str, ints: str, scales: str, outputs: int, bias: str = "") -> str:
        """Multiply x (..., i) with bytes (i, outputs) of scales (outputs,); add a bias (outputs,).

        The product adds it at once: a separate operator would pass over the output again.
        """
        zero = "" if self.products == "int8" else self._zeros(outputs)
        return self.microsoft("DynamicQuantizeMatMul", x, ints, scales, zero, bias)

    def matrix(self, weight: Weight) -> str:
        """The numbers of a weight, (o, i) float32; a session computes them when it is made."""
        if isinstance(weight, Tensor):
            return self.constant(weight.detach().float().flatten(1).numpy())
        if isinstance(weight, Sinusoids):
            return self._sinusoids(*weight.shape)
        if isinstance(weight, Coded):
            width = weight.books.shape[0] * weight.books.shape[2]
            return self.op("Reshape", self.rows(weight, None), self.ints(-1, width))
        rows = len(weight.ints)
        flat = weight.ints.reshape(rows, -1)
        count = weight.scale.numel() // rows if weight.scale.dim() else 1
        parts = self.op("Cast", self._stored_ints(flat, weight), to=FLOAT)
        parts = self.op("Reshape", parts, self.ints(rows, count, -1))
        shape = (-1, count, 1) if weight.scale.dim() else ()
        scale = self._scales(weight.scale.reshape(shape))
        return self.op("Reshape", self.op("Mul", parts, scale), self.ints(rows, -1))

    def rows(self, table: Coded, chosen: str | None) -> str:
        """Rows (..., parts, size) of a table of codes; ``chosen``: their places; None: all."""
        parts, _, size = table.books.shape
        codes = self.constant(table.codes.numpy())
        if chosen is not None:
            codes = self.op("Gather", codes, chosen, axis=0)
        first = self.constant(np.arange(parts) * CODES, np.int32)
        places = self.op("Add", self.op("Cast", codes, to=INT32), first)
        return self.op("Gather", self._scales(table.books.reshape(-1, size)), places, axis=0)

    def norm(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """Layer normalisation of the last axis."""
        parameters = (self.constant(p.float().numpy()) for p in (weight, bias))
        return self.op("LayerNormalization", x, *parameters, axis=-1, epsilon=1e-5)

    def save(
        self,
        path: Path,
        inputs: Mapping[str, tuple[int, Sequence[Any]]],
        outputs: Mapping[str, tuple[int, Sequence[Any]]],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the graph and write it; inputs and outputs have a type and a shape."""
        first, last = (
            [helper.make_tensor_value_info(name, *one) for name, one in given.items()]
            for given in (inputs, outputs)
        )
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, path.stem, first, last, constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="espnet-ext"
        )
        helper.set_model_props(model, {key: str(value) for key, value in (metadata or {}).items()})
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def _blockwise(self, x: str, weight: Quantised, block: int) -> str:
        """Multiply with 4 or 8 bits, of which ``block`` inputs share a scale."""
        rows = len(weight.ints)
        packed, _, bits = packed_blocks(weight, block)
        inputs = weight.ints[0].numel()
        stored = self._counted_once(self.constant(packed.numpy()), weight)
        groups = weight.scale.numel() // rows
        scale = self._scales(weight.scale.reshape(rows, -1, 1))
        scale = self.op("Expand", scale, self.ints(rows, groups, inputs // block // groups))
        scale = self.op("Reshape", scale, self.ints(-1))
        options = {"K": inputs, "N": rows, "bits": bits, "block_size": block}
        return self.microsoft(
            *("MatMulNBits", x, stored, scale),
            **options,
            accuracy_level=0 if self.products == "float32" else 4,
        )

    def _in_columns(self, weight: Quantised) -> bool:
        """True if a weight is multiplied with as 8 bits that have a scale for each output."""
        grouped = has_groups(weight.scale.shape)
        return weight.bits == 8 and not grouped and self.products != "float32"

    def embedded(self, table: Quantised, rows: str) -> str:
        """Rows (1, n, i) of a table that is multiplied with too; bytes in columns serve both."""
        if not self._in_columns(table):
            return self.op("Gather", self.matrix(table), rows, axis=0)
        ints, scales = self._columns(table)
        x = self.op("Cast", self.op("Gather", ints, rows, axis=1), to=FLOAT)  # (i, 1, n)
        if self.products == "uint8":
            x = self.op("Sub", x, self.constant(ZERO, np.float32))
        scale = self.op("Unsqueeze", self.op("Gather", scales, rows, axis=0), self.ints(-1))
        return self.op("Mul", self.op("Transpose", x, perm=[1, 2, 0]), scale)

    def _columns(self, weight: Quantised) -> tuple[str, str]:
        """Bytes (i, o) and scales (o,) of 8 bits that have a scale for each output."""
        rows = len(weight.ints)
        ints = in_products(weight.ints.reshape(rows, -1).T.contiguous(), self.products)
        scales = self.constant(weight.scale.flatten().expand(rows).float().numpy())
        return self._counted_once(self.constant(ints.numpy()), weight), scales

    def _widened(self, x: str, weight: Quantised, bias: str) -> str:
        """Multiply with 8-bit numbers that a session makes of a weight of fewer bits; add a bias.

        A number is the integer times the scale of its group, by that of its row, rounded.
        """
        rows = len(weight.ints)
        flat = weight.ints.reshape(rows, -1)
        scale = self.constant(row_scales(weight).numpy())
        shape = (rows, -1, 1) if weight.scale.dim() else ()
        groups = self._scales(weight.scale.reshape(shape))
        count = weight.scale.numel() // rows if weight.scale.dim() else 1
        # A session keeps all that it computes until it is made: few operators, little memory.
        stored = self._stored_ints(flat.reshape(rows, count, -1), weight)
        numbers = self.op("Mul", self.op("Cast", stored, to=FLOAT), groups)
        ints = self.op("QuantizeLinear", numbers, scale, self._zeros(rows), axis=0)
        ints = self.op("Reshape", ints, self.ints(rows, -1))
        return self.bytewise(x, self.op("Transpose", ints, perm=[1, 0]), scale, rows, bias)

    def _zeros(self, outputs: int) -> str:
        return self.constant(zeros(outputs, self.products).numpy())

    def _stored_ints(self, flat: Tensor, weight: Quantised) -> str:
        """The integers of a weight (o, ...), of at most 4 bits two to a byte, others in bytes."""
        values = flat.numpy()
        if weight.bits > 4:
            return self._counted_once(self.constant(values), weight)
        key = (values.tobytes(), INT4, values.shape)
        if key not in self._known:
            name = self._known[key] = self._name("constant")
            self._constants[name] = in_pairs(name, values)
        return self._counted_once(self._known[key], weight)

    def _counted_once(self, name: str, weight: Quantised) -> str:
        """Count the integers of a weight, once; return their name."""
        if name not in self._seen:
            self._seen.add(name)
            self.rounded[weight.bits] += weight.ints.numel()
        return name

    def _scales(self, scale: Tensor) -> str:
        """Numbers as float32, in float16 in the file where that holds them."""
        half = scale.half()
        if torch.equal(half.float(), scale.float()):
            return self.op("Cast", self.constant(half.numpy()), to=FLOAT)
        return self.constant(scale.float().numpy())

    def _sinusoids(self, length: int, width: int) -> str:
        """The table of ``methods.positions.sinusoids``; computed when a session is made."""
        rates = np.exp(-np.log(10_000.0) / max(width // 2 - 1, 1) * np.arange(width // 2))
        places = self.op("Range", *(self.constant(v, np.int64) for v in (0, length, 1)))
        angles = self.op(
            "Mul",
            self.op("Unsqueeze", self.op("Cast", places, to=FLOAT), self.ints(1)),
            self.constant(rates[None], np.float32),
        )
        both = self.op("Concat", self.op("Sin", angles), self.op("Cos", angles), axis=-1)
        half = self.op("Cast", both, to=TensorProto.FLOAT16)  # the numbers that models have
        return self.op("Cast", half, to=FLOAT)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the branches of its nodes, theirs included; they read the names around them."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    yield from graphs_in(inner)


def nodes_in(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of its branches."""
    return [node for inner in graphs_in(graph) for node in inner.node]
