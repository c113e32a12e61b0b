"""The weights of several graphs in one file, each once.

A stored tensor that another one is, or begins with, is read from there; integers that are a coarse
precision of a weight are computed from it (see ``integers``).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from espnet_ext.export.graph import INT4, INT8, UINT8, Graph, nodes_in
from espnet_ext.export.integers import Reader, Weight, computed

_LEAST = 1024  # bytes of a tensor that leaves its graph
_ALIGNED = 64  # bytes


@dataclass(frozen=True)
class _Source:
    """A tensor in the file; ``weight``: what it is, if a coarser precision can follow from it."""

    offset: int
    kind: int
    values: np.ndarray
    raw: bytes
    weight: Weight | None


class WeightFile:
    """A file of weights under construction; graphs that read it lie in its folder."""

    def __init__(self, path: Path):
        self.path = path
        self._content = bytearray()
        self._sources: list[_Source] = []
        self._known: dict[str, int] = {}  # offset by digest

    def take(self, path: Path) -> None:
        """Move the weights of a graph to the file, and write the graph again.

        Of two graphs that have a weight, the one of more bits must be taken first.
        """
        model = onnx.load(path)
        reader = Reader(model)
        kept, added = [], _Added(self.path.name)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            raw = _raw(tensor, values)
            if len(raw) < _LEAST:
                kept.append(tensor)
                continue
            values = values.astype(np.int8) if tensor.data_type == INT4 else values
            self._move(tensor, values, raw, reader, added)
        del model.graph.initializer[:]
        made, constants = added.g.parts()
        for one in constants:
            if len(one.raw_data) >= _LEAST:  # finer scales
                place = self._append(one.raw_data)
                added.tensor(one.name, one.data_type, tuple(one.dims), place, len(one.raw_data))
            else:
                kept.append(one)
        for node in made:
            node.name = ""  # which would be a third of a small graph
        model.graph.initializer.extend([*kept, *added.tensors.values()])
        nodes = list(_in_order([*model.graph.node, *made]))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, path)

    def close(self) -> None:
        """Write the file."""
        self.path.write_bytes(self._content)

    def _move(
        self,
        tensor: onnx.TensorProto,
        values: np.ndarray,
        raw: bytes,
        reader: Reader,
        added: "_Added",
    ) -> None:
        name, kind, shape = tensor.name, tensor.data_type, tuple(tensor.dims)
        same = self._known.get(hashlib.sha256(raw).hexdigest())
        if same is not None:
            added.tensor(name, kind, shape, same, len(raw))
            return
        for source in self._sources:
            if _begins_with(source, kind, values):
                if source.values.shape[1:] == values.shape[1:] and kind != INT4:
                    added.tensor(name, kind, shape, source.offset, len(raw))
                else:
                    added.part(name, source, shape)
                return
        weight = reader.weight(tensor, values)
        if weight is not None and self._compute(name, weight, added):
            return
        offset = self._append(raw)
        self._sources.append(_Source(offset, kind, values, raw, weight))
        added.tensor(name, kind, shape, offset, len(raw))

    def _compute(self, name: str, weight: Weight, added: "_Added") -> bool:
        """Read a weight from a finer one; False if there is none."""
        for source in self._sources:
            for fine in _readings(source):
                found = computed(fine, weight)
                if found is None:
                    continue
                moved = ""
                if found.moved:
                    moved, size = f"{name}.moved", len(found.moved)
                    place = self._append(found.moved)
                    added.tensor(moved, UINT8, (size,), place, size)
                ints = found.add_to(added.g, added.source(source), moved)
                added.g.op("Identity", ints, out=name)
                return True
        return False

    def _append(self, raw: bytes) -> int:
        """Where bytes begin in the file that are added to it, or were."""
        digest = hashlib.sha256(raw).hexdigest()
        if digest not in self._known:
            self._content.extend(bytes(-len(self._content) % _ALIGNED))
            self._known[digest] = len(self._content)
            self._content.extend(raw)
        return self._known[digest]


class _Added:
    """What a graph gets in the place of its weights."""

    def __init__(self, file: str):
        self.file = file
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.g = Graph(prefix="_")

    def tensor(self, name: str, kind: int, shape: tuple[int, ...], offset: int, size: int) -> None:
        """A tensor that is read from the file."""
        found = TensorProto(
            name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL
        )
        place = {"location": self.file, "offset": offset, "length": size}
        for key, value in place.items():
            found.external_data.add(key=key, value=str(value))
        self.tensors[name] = found

    def source(self, source: _Source) -> str:
        """The name of the whole of a source."""
        name = f"weights_{source.offset}"
        self.tensor(name, source.kind, source.values.shape, source.offset, len(source.raw))
        return name

    def part(self, name: str, source: _Source, shape: tuple[int, ...]) -> None:
        """The first entries of a source in every dimension."""
        g, whole = self.g, self.source(source)
        if source.kind == INT4:  # which cannot be cut; its readers cast it
            whole = g.op("Cast", whole, to=INT8)
        starts = g.ints(*[0] * len(shape))
        g.op("Slice", whole, starts, g.ints(*shape), out=name)


def _raw(tensor: onnx.TensorProto, values: np.ndarray) -> bytes:
    """The bytes of a tensor as they lie in a file."""
    return bytes(tensor.raw_data or numpy_helper.from_array(values).raw_data)


def _begins_with(source: _Source, kind: int, values: np.ndarray) -> bool:
    """True if the first entries of a source in every dimension are these values."""
    if source.kind != kind or source.values.ndim != values.ndim:
        return False
    if any(a < b for a, b in zip(source.values.shape, values.shape, strict=True)):
        return False
    part = source.values[tuple(slice(size) for size in values.shape)]
    return bool((part[:1] == values[:1]).all() and np.array_equal(part, values))


def _readings(source: _Source) -> Iterator[Weight]:
    """A source as weights: numbers may be stored as (o, i) or as (i, o)."""
    if source.weight is not None:
        yield source.weight
        if source.weight.scale is None and source.values.ndim == 2:
            yield source.weight.turned()


def _in_order(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, each after those that it reads."""
    makers = {name: node for node in nodes for name in node.output}
    done: set[int] = set()
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting[-1]
        missing = [
            maker
            for name in _read(node)
            if (maker := makers.get(name)) is not None and id(maker) not in done
        ]
        if missing and id(node) not in done:
            waiting += missing
            continue
        waiting.pop()
        if id(node) not in done:
            done.add(id(node))
            yield node


def _read(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, in its branches too."""
    found = list(node.input)
    for attribute in node.attribute:
        if attribute.g.node:
            found += [name for inner in nodes_in(attribute.g) for name in inner.input]
    return found
