"""Weights as the graphs of a family store them, and coarse ones that follow from finer ones.

A weight of a family is float32 in the graph of one member, and integers of 8 or of 4 bits in those
of others. The coarser are computed when a member is loaded
(``runtime.family_weights.weight_from``):

    ints = clip(round(ints' (s' / s)))    from finer integers ints' of scale s'
    ints = clip(round(W / s))             from numbers W

in float32. Finer integers were rounded themselves. So where ints' s' / s is nearly half-way between
two integers, the coarse one may be the other: a bit mask selects which, for about a
twentieth of all.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from espnet_ext.export.graphs.folding import evaluated
from espnet_ext.export.graphs.graph import FLOAT
from espnet_ext.export.graphs.products import INT4, INT8, UINT8, ZERO
from espnet_ext.export.runtime.family_weights import rounded

_LIMITS = (1, 3, 7, 31, 127)  # largest integers of 2, 3, 4, 6 and 8 bits
_STORED = (UINT8, INT8, INT4)


@dataclass(frozen=True)
class Weight:
    """A weight of o outputs and i inputs as a graph stores it.

    Attributes:
        rows: integers or numbers (o, i).
        scale: of integers, (o or 1, groups); None: of numbers.
        kind: type of the stored tensor.
        zero: the stored value of the integer 0.
        in_pairs: bytes hold two integers.
        across: stored as (i, o).
    """

    rows: np.ndarray
    scale: np.ndarray | None
    kind: int
    zero: int = 0
    in_pairs: bool = False
    across: bool = False

    def turned(self) -> "Weight":
        """Numbers that are stored as (i, o), if these are stored as (o, i)."""
        return replace(self, rows=self.rows.T, across=True)


class Reader:
    """The weights of a graph."""

    def __init__(self, model: onnx.ModelProto):
        self._model = model
        graph = model.graph
        # Values, as the tensors lose theirs one by one.
        self._stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
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
            return Weight(values.reshape(len(values), -1), None, FLOAT)
        users = self._users.get(tensor.name, [])
        if tensor.data_type not in _STORED or len({user.op_type for user in users}) != 1:
            return None
        user = users[0]  # of all layers that share the weight
        if user.op_type == "MatMulNBits":
            return self._in_blocks(user, values)
        if user.op_type == "DynamicQuantizeMatMul":
            zero = ZERO if tensor.data_type == UINT8 else 0
            rows, scale = values.astype(np.int16).T - zero, self._value(user.input[2])
            found = Weight(rows, None, tensor.data_type, zero)
            return _with_scale(found, scale, across=True)
        return self._times_scale(user, tensor.data_type, values)

    def _in_blocks(self, user: onnx.NodeProto, values: np.ndarray) -> Weight | None:
        conf = {one.name: one.i for one in user.attribute}
        in_pairs, zero = conf["bits"] == 4, 2 ** (conf["bits"] - 1)
        rows = np.stack([values & 15, values >> 4], -1) if in_pairs else values
        rows = rows.reshape(conf["N"], conf["K"]).astype(np.int16) - zero
        found = Weight(rows, None, UINT8, zero, in_pairs)
        return _with_scale(found, self._value(user.input[2]))

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
        found = Weight(rows.astype(np.int16), None, kind)
        return _with_scale(found, scale, across)

    def _value(self, name: str) -> np.ndarray | None:
        """What a tensor is whatever the inputs of the graph are; None if it depends on them."""
        if name in self._stored:
            return self._stored[name]
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
    if (shaped == shaped[:, :1]).all():
        shaped = shaped[:, :1]
    return replace(weight, scale=shaped, across=across)


@dataclass(frozen=True)
class Computed:
    """How a coarse weight follows from a finer one.

    Attributes:
        limit: the largest integer.
        moved: of the places nearly half-way, in bytes: bits that are 1 where the integer is the
            other one.
    """

    limit: int
    moved: bytes = b""


def computed(fine: Weight, coarse: Weight) -> Computed | None:
    """How a weight of integers follows from a finer one; None if it does not."""
    if coarse.scale is None or fine.in_pairs:
        return None
    finer = None if fine.scale is None else fine.scale[: len(coarse.rows)]
    if any(a < b for a, b in zip(fine.rows.shape, coarse.rows.shape, strict=True)):
        return None
    outputs, inputs = coarse.rows.shape
    limit = next((n for n in _LIMITS if n >= np.abs(coarse.rows).max()), None)
    groups = 1 if finer is None else finer.shape[1]
    # The groups of a part of the inputs are other ones.
    misfit = groups > 1 and (
        inputs < fine.rows.shape[1] or coarse.scale.shape[1] not in (1, groups)
    )
    if limit is None or misfit:
        return None
    x, y, near = rounded(fine.rows[:outputs, :inputs], coarse.scale, finer)
    moved = near & (clipped(y, limit, coarse) != coarse.rows).reshape(x.shape)
    y[moved] += np.sign(x[moved] - y[moved])
    if not np.array_equal(clipped(y, limit, coarse), coarse.rows):
        return None
    return Computed(limit, np.packbits(moved[near], bitorder="little").tobytes())


def clipped(y: np.ndarray, limit: int, coarse: Weight) -> np.ndarray:
    return np.clip(y, -limit, limit).reshape(coarse.rows.shape)
