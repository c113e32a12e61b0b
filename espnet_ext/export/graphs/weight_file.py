"""The weights of several graphs in one file, each once.

Tensors that are equal, or the first rows of another one, are read from the same place. One that is
another part of another one, or its integers at fewer bits, is not stored:
``runtime.family_weights.weight_from`` computes it when a member is loaded.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from espnet_ext.export.graphs.integers import Computed, Reader, Weight, computed
from espnet_ext.export.graphs.products import INT4
from espnet_ext.export.runtime.family_weights import weight_from

_ALIGNED = 64  # bytes, of weights in a file
_LEAST = 1024  # bytes of a tensor that leaves its graph


@dataclass(frozen=True)
class _Source:
    """A tensor in the file; ``weight``: what it is, if a coarser precision can follow from it."""

    offset: int
    kind: int
    values: np.ndarray
    weight: Weight | None

    def place(self) -> list[Any]:
        """Where it is, its type and its shape."""
        known = "int4" if self.kind == INT4 else helper.tensor_dtype_to_np_dtype(self.kind).name
        return [self.offset, known, list(self.values.shape)]


class WeightFile:
    """A file of weights under construction; graphs that read it lie in its folder."""

    def __init__(self, path: Path):
        self.path = path
        self._content = bytearray()
        self._sources: list[_Source] = []
        self._known: dict[str, int] = {}  # offset by digest

    def take(self, path: Path, computed_file: str, recipes: list[dict[str, Any]]) -> None:
        """Move the weights of a graph to the file, and write the graph again.

        Of two graphs that have a weight, the one of more bits must come first.

        Args:
            path: of the graph.
            computed_file: name of the file of its member's weights that are computed.
            recipes: of these weights so far; more are appended.
        """
        model = onnx.load(path)
        reader = Reader(model)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            raw = bytes(tensor.raw_data or numpy_helper.from_array(values).raw_data)
            if len(raw) < _LEAST:
                continue
            values = values.astype(np.int8) if tensor.data_type == INT4 else values
            recipe = self._find(tensor, values, raw, reader)
            if isinstance(recipe, int):
                _refer(tensor, self.path.name, recipe, len(raw))
                continue
            if weight_from(recipe, self._content) != raw:
                raise RuntimeError(f"{path.name}: {tensor.name} changed in the family's file")
            end = recipes[-1]["at"] + recipes[-1]["bytes"] if recipes else 0
            recipe |= {"at": end + -end % _ALIGNED, "bytes": len(raw)}
            recipes.append(recipe)
            _refer(tensor, computed_file, recipe["at"], len(raw))
        onnx.save(model, path)

    def close(self) -> None:
        """Write the file."""
        self.path.write_bytes(self._content)

    def _find(
        self, tensor: onnx.TensorProto, values: np.ndarray, raw: bytes, reader: Reader
    ) -> int | dict[str, Any]:
        """Where the bytes of a tensor are in the file, or how it is computed."""
        same = self._known.get(hashlib.sha256(raw).hexdigest())
        if same is not None:
            return same
        kind = tensor.data_type
        for source in self._sources:
            if not _begins_with(source, kind, values):
                continue
            recipe = {"from": source.place(), "part": list(values.shape)}
            if weight_from(recipe, self._content) != raw:  # -0.0 is 0.0, but for its bytes
                continue
            whole = source.values.shape[1:] == values.shape[1:] and kind != INT4
            return source.offset if whole else recipe
        weight = reader.weight(tensor, values)
        if weight is not None and weight.scale is not None:
            for source in self._sources:
                for fine in _readings(source):
                    if (found := computed(fine, weight)) is not None:
                        return self._recipe(source, fine, weight, found)
        offset = self._append(raw)
        self._sources.append(_Source(offset, kind, values, weight))
        return offset

    def _recipe(
        self, source: _Source, fine: Weight, coarse: Weight, found: Computed
    ) -> dict[str, Any]:
        """The recipe that ``runtime.family_weights.weight_from`` reads."""
        recipe: dict[str, Any] = {
            "from": source.place(),
            "across": fine.across,
            "part": list(coarse.rows.shape),
            "scale": self._numbers(coarse.scale),
            "limit": found.limit,
            "zero": coarse.zero,
            "turn": coarse.across,
            "pairs": coarse.in_pairs or coarse.kind == INT4,
        }
        if fine.scale is not None:
            recipe |= {"from_zero": fine.zero, "from_scale": self._numbers(fine.scale)}
        if found.moved:
            recipe["moved"] = [self._append(found.moved), "uint8", [len(found.moved)]]
        return recipe

    def _numbers(self, values: Any) -> list[Any]:
        """Where scales are, in float16 if that holds them."""
        half = values.astype(np.float16)
        kept = half if np.array_equal(half.astype(np.float32), values) else values
        return [self._append(kept.tobytes()), kept.dtype.name, list(kept.shape)]

    def _append(self, raw: bytes) -> int:
        """Where bytes begin in the file that are added to it, or were."""
        digest = hashlib.sha256(raw).hexdigest()
        if digest not in self._known:
            self._content.extend(bytes(-len(self._content) % _ALIGNED))
            self._known[digest] = len(self._content)
            self._content.extend(raw)
        return self._known[digest]


def _refer(tensor: onnx.TensorProto, file: str, offset: int, size: int) -> None:
    """Let a tensor be read from a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": offset, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))


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
