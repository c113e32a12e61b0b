"""Weights as the graphs of a family store them, and coarse ones computed from finer ones.

A weight of a family is float32 in the graph of one member, and integers of 8 or of 4 bits in those
of others. Operators on constants, which a session runs once, when it is made, compute the coarser:

    ints = clip(round(ints' s' / s))    from finer integers ints' of scale s'
    ints = clip(round(W / s))           from numbers W

in float32, here as there. Finer integers were rounded themselves. So where ints' s' / s is nearly
half-way between two integers, the coarse one may be the other: the file has a bit for each of
these places, about a twentieth of all.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from espnet_ext.export.folding import evaluated
from espnet_ext.export.graph import FLOAT, INT4, INT8, INT32, UINT8, ZERO, Graph

_NEAR = 0.501  # fine steps to half-way, at most, where a coarse integer may be the other one
_LIMITS = (1, 3, 7, 31, 127)  # largest integers of 2, 3, 4, 6 and 8 bits
_STORED = (UINT8, INT8, INT4)


@dataclass(frozen=True)
class Weight:
    """A weight of o outputs and i inputs as a graph stores it.

    Attributes:
        rows: integers or numbers (o, i).
        scale: of integers, (o or 1, groups); None: of numbers.
        scale_name: of the scale in the graph.
        kind: type of the stored tensor.
        shape: of the stored tensor.
        zero: the stored value of the integer 0.
        in_pairs: bytes hold two integers.
        across: stored as (i, o).
    """

    rows: np.ndarray
    scale: np.ndarray | None
    scale_name: str
    kind: int
    shape: tuple[int, ...]
    zero: int = 0
    in_pairs: bool = False
    across: bool = False

    def turned(self) -> "Weight":
        """Numbers that are stored as (i, o), if these are stored as (o, i)."""
        return Weight(self.rows.T, None, "", self.kind, self.shape, across=True)


class Reader:
    """The weights of a graph."""

    def __init__(self, model: onnx.ModelProto):
        self._model = model
        graph = model.graph
        self._stored = {one.name: one for one in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def weight(self, tensor: onnx.TensorProto, values: np.ndarray) -> Weight | None:
        """A stored tensor of these values as a weight; None if it is none, or in an unknown form.

        Numbers count as a weight of as many outputs as their first dimension has.
        """
        if values.ndim < 2:
            return None
        if tensor.data_type == FLOAT:
            return Weight(values.reshape(len(values), -1), None, "", FLOAT, values.shape)
        users = self._users.get(tensor.name, [])
        if tensor.data_type not in _STORED or len({user.op_type for user in users}) != 1:
            return None
        user = users[0]  # of all layers that share the weight
        if user.op_type == "MatMulNBits":
            return self._in_blocks(user, values)
        if user.op_type == "DynamicQuantizeMatMul":
            zero = ZERO if tensor.data_type == UINT8 else 0
            rows, scale = values.astype(np.int16).T - zero, self._value(user.input[2])
            found = Weight(rows, None, user.input[2], tensor.data_type, values.shape, zero)
            return _with_scale(found, scale, across=True)
        return self._times_scale(user, tensor.data_type, values)

    def _in_blocks(self, user: onnx.NodeProto, values: np.ndarray) -> Weight | None:
        conf = {one.name: one.i for one in user.attribute}
        in_pairs, zero = conf["bits"] == 4, 2 ** (conf["bits"] - 1)
        rows = np.stack([values & 15, values >> 4], -1) if in_pairs else values
        rows = rows.reshape(conf["N"], conf["K"]).astype(np.int16) - zero
        name = user.input[2]
        found = Weight(rows, None, name, UINT8, values.shape, zero, in_pairs)
        return _with_scale(found, self._value(name))

    def _times_scale(self, user: onnx.NodeProto, kind: int, values: np.ndarray) -> Weight | None:
        """Integers that are cast, and multiplied with a scale."""
        chain = [user]
        while chain[-1].op_type in ("Cast", "Reshape") and len(chain) < 4:
            following = self._users.get(chain[-1].output[0], [])
            if len(following) != 1:
                return None
            chain.append(following[0])
        if user.op_type != "Cast" or chain[-1].op_type != "Mul":
            return None
        name = next(one for one in chain[-1].input if one not in chain[-2].output)
        scale = self._value(name)
        across = scale is not None and scale.ndim == 1 and values.ndim == 2
        rows = values.T if across else values.reshape(len(values), -1)
        found = Weight(rows.astype(np.int16), None, name, kind, values.shape)
        return _with_scale(found, scale, across)

    def _value(self, name: str) -> np.ndarray | None:
        """What a tensor is whatever the inputs of the graph are; None if it depends on them."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        node = self._makers.get(name)
        if node is None:
            return None
        given: dict[str, np.ndarray] = {}
        for one in filter(None, node.input):
            value = self._value(one)
            if value is None:
                return None
            given[one] = value
        return evaluated(node, given, self._model)[list(node.output).index(name)]


def _with_scale(weight: Weight, scale: np.ndarray | None, across: bool = False) -> Weight | None:
    """The weight with a scale (o, groups) or (1, 1); None if the scale is not of that form."""
    outputs, inputs = weight.rows.shape
    if scale is None or (scale.size > 1 and scale.size % outputs):
        return None
    if scale.size > 1 and inputs % (scale.size // outputs):
        return None
    shaped = scale.astype(np.float32).reshape(outputs if scale.size > 1 else 1, -1)
    return Weight(**{**vars(weight), "scale": shaped, "across": across})


@dataclass(frozen=True)
class Computed:
    """A coarse weight as it follows from a finer one.

    Attributes:
        limit: the largest integer.
        moved: of the places nearly half-way, in bytes: bits that are 1 where the integer is the
            other one.
    """

    fine: Weight
    coarse: Weight
    limit: int
    moved: bytes = b""

    def add_to(self, g: Graph, fine: str, moved: str) -> str:
        """Add the operators to a graph; return the name of the stored form.

        Args:
            g: that gets them.
            fine: name of the finer weight as it is stored.
            moved: name of the bits; not read where there are none.
        """
        source, wanted = self.fine, self.coarse
        x = g.op("Cast", fine, to=FLOAT)
        x = g.op("Sub", x, g.constant(source.zero, np.float32)) if source.zero else x
        outputs, inputs = wanted.rows.shape
        if source.across:
            x = g.op("Transpose", g.op("Reshape", x, g.ints(*source.shape)), perm=[1, 0])
        else:
            x = g.op("Reshape", x, g.ints(*source.rows.shape))
        if source.rows.shape != wanted.rows.shape:
            x = g.op("Slice", x, g.ints(0, 0), g.ints(outputs, inputs))
        assert wanted.scale is not None
        rows, groups = wanted.scale.shape
        scale = g.op("Reshape", wanted.scale_name, g.ints(rows, groups, 1))
        if source.scale is None:
            x = g.op("Div", g.op("Reshape", x, g.ints(outputs, groups, -1)), scale)
            y = g.op("Round", x)
        else:
            finer = source.scale[:outputs, :, None]
            most = max(groups, finer.shape[1])
            ratio = g.op("Div", g.constant(finer), scale)
            x = g.op("Mul", g.op("Reshape", x, g.ints(outputs, most, -1)), ratio)
            y = g.op("Round", x)
            y = self._moved(g, x, y, ratio, moved) if self.moved else y
        y = g.op("Clip", y, *(g.constant(n, np.float32) for n in (-self.limit, self.limit)))
        return self._stored(g, y)

    def _moved(self, g: Graph, x: str, y: str, ratio: str, moved: str) -> str:
        """The integers with those near half-way replaced by the other ones where bits say so."""
        flat, half = g.ints(-1), g.constant(0.5, np.float32)
        away = g.op("Sub", x, y)
        middle = g.op("Abs", g.op("Sub", g.op("Abs", away), half))
        near = g.op("Less", middle, g.op("Mul", ratio, g.constant(_NEAR, np.float32)))
        near = g.op("Reshape", near, flat)
        powers = g.constant(2.0 ** np.arange(8), np.float32)
        bits = g.op("Div", g.op("Reshape", g.op("Cast", moved, to=FLOAT), g.ints(-1, 1)), powers)
        bits = g.op("Mod", g.op("Floor", bits), g.constant(2, np.float32), fmod=1)
        # The number of a place among those near half-way; at the others any bit, times 0. A session
        # does not compute NonZero, whose size it does not know, when it is made.
        number = g.op("CumSum", g.op("Cast", near, to=INT32), g.constant(0, np.int64))
        number = g.op("Sub", number, g.constant(1, np.int32))
        bit = g.op("Gather", g.op("Reshape", bits, flat), number)
        bit = g.op("Mul", bit, g.op("Cast", near, to=FLOAT))
        step = g.op("Mul", g.op("Sign", g.op("Reshape", away, flat)), bit)
        return g.op("Add", g.op("Reshape", y, flat), step)

    def _stored(self, g: Graph, y: str) -> str:
        """Integers in the form in which the graph reads them."""
        wanted = self.coarse
        y = g.op("Add", y, g.constant(wanted.zero, np.float32)) if wanted.zero else y
        if wanted.in_pairs:
            y = g.op("Reshape", y, g.ints(*wanted.shape, 2))
            y = g.op("Mul", y, g.constant([1, 16], np.float32))
            y = g.op("ReduceSum", y, g.ints(-1), keepdims=0)
        if wanted.across:
            y = g.op("Transpose", g.op("Reshape", y, g.ints(*wanted.rows.shape)), perm=[1, 0])
        kind = UINT8 if wanted.kind == UINT8 else INT8
        return g.op("Reshape", g.op("Cast", y, to=kind), g.ints(*wanted.shape))


def computed(fine: Weight, coarse: Weight) -> Computed | None:
    """How a weight of integers follows from a finer one; None if it does not."""
    if coarse.scale is None or fine.in_pairs:
        return None
    if any(a < b for a, b in zip(fine.rows.shape, coarse.rows.shape, strict=True)):
        return None
    outputs, inputs = coarse.rows.shape
    x = fine.rows[:outputs, :inputs].astype(np.float32)
    scale, groups = coarse.scale[:, :, None], coarse.scale.shape[1]
    limit = next(n for n in _LIMITS if n >= np.abs(coarse.rows).max())
    if fine.scale is None:
        x = x.reshape(outputs, groups, -1) / scale
        same = np.array_equal(_clipped(np.round(x), limit, coarse), coarse.rows)
        return Computed(fine, coarse, limit) if same else None
    finer = fine.scale[:outputs, :, None]
    counts = {groups, finer.shape[1]} - {1}
    # The groups of a part of the inputs are other ones.
    if len(counts) > 1 or (finer.shape[1] > 1 and inputs < fine.rows.shape[1]):
        return None
    ratio = finer / scale
    x = x.reshape(outputs, max(groups, finer.shape[1]), -1) * ratio
    y = np.round(x)
    near = np.abs(np.abs(x - y) - np.float32(0.5)) < ratio * np.float32(_NEAR)
    moved = near & (_clipped(y, limit, coarse) != coarse.rows).reshape(x.shape)
    y[moved] += np.sign(x[moved] - y[moved])
    if not np.array_equal(_clipped(y, limit, coarse), coarse.rows):
        return None
    bits = np.packbits(moved[near], bitorder="little")
    return Computed(fine, coarse, limit, bits.tobytes())


def _clipped(y: np.ndarray, limit: int, coarse: Weight) -> np.ndarray:
    return np.clip(y, -limit, limit).reshape(coarse.rows.shape)
