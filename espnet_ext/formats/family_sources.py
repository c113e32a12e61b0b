"""The tensors of a family file: each is stored once, and members are parts of them.

A weight of a small member is the leading part of a large one's, and

- if 32 bits are offered, the float32 weights are stored, and those of fewer bits are
  computed from them and the stored scales;
- else the integers of the most bits are stored, and those of fewer bits are computed from them and
  a few more bits (``bits.refine``), since they are nearly but not quite a function of them: about
  8.1 bits for a weight that is offered at 8, 4 and 2 bits, instead of 14.

Nothing is lost: a member comes back to the last bit. What is not part of a stored tensor, such as
the normalisation statistics of a member, is stored in addition.

A layout entry of a source is [shape, type or bits, shape of scales or null, [[bits, width, bytes],
...]]; the last list has the coarser precisions with the size of what ``bits.refine`` returned (0, 0
at float32).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_ext.formats.bits import Quantised, refine, refined
from espnet_ext.formats.layout import Source as SourceLayout
from espnet_ext.formats.packed import (
    Parts,
    State,
    TensorReader,
    append_value,
    concatenate,
)
from espnet_ext.formats.value_checks import check_scale
from espnet_ext.methods.quantise import integers

type Value = Tensor | Quantised


@dataclass
class Source:
    """A value that is stored once: a tensor, or integers; and its coarser precisions."""

    tensor: Tensor | None  # None: the integers of the most bits are stored
    precisions: dict[int, Quantised]  # by bits

    @property
    def stored(self) -> Value:
        """The value that the file holds."""
        return self.precisions[max(self.precisions)] if self.tensor is None else self.tensor

    def contains(self, value: Value) -> bool:
        """True if ``value`` is the leading part of this source."""
        whole = self.precisions.get(value.bits) if isinstance(value, Quantised) else self.tensor
        if whole is None or not _fits(shape_of(value), shape_of(whole)):
            return False
        return equal(leading(whole, shape_of(value)), value)

    def add_precision(self, value: Value) -> bool:
        """Add ``value`` and return True if it is the whole of this source at fewer bits."""
        if not isinstance(value, Quantised) or value.bits in self.precisions:
            return False
        stored = self.stored
        if shape_of(stored) != shape_of(value):
            return False
        if isinstance(stored, Quantised):
            try:
                refine(stored, value)
            except ValueError:
                return False
        elif not torch.equal(integers(stored, value.bits, scale=value.scale)[0], value.ints):
            return False
        self.precisions[value.bits] = value
        return True

    def append_to(self, parts: Parts) -> list:
        """Append the tensors of this source to ``parts``; return its layout entry."""
        stored, coarser = self.stored, []
        shape, kind, scale_shape = append_value(stored, parts)
        for bits in sorted(self.precisions, reverse=True):
            value, width, size = self.precisions[bits], 0, 0
            if value is stored:
                continue
            if isinstance(stored, Quantised):
                more, width = refine(stored, value)
                parts.setdefault("refined", []).append(more)
                size = len(more)
            parts.setdefault("scales", []).append(value.scale.flatten().float())
            coarser.append([bits, width, size])
            scale_shape = list(value.scale.shape)
        return [shape, kind, scale_shape, coarser]


class SourceCollection:
    """The sources of all members of a family, each once."""

    def __init__(self) -> None:
        self.all: list[Source] = []
        self.by_name: dict[str, list[int]] = {}

    def add(self, state: State) -> list[int]:
        """Return the index of the source of each value; values without one become sources."""
        return [self._add(name, value) for name, value in state.items()]

    def _add(self, name: str, value: Value) -> int:
        same_name = self.by_name.setdefault(name, [])
        for k in same_name:
            if self.all[k].contains(value) or self.all[k].add_precision(value):
                return k
        # In a small member a layer may have another number, and so another name.
        for k, source in enumerate(self.all):
            if k not in same_name and source.contains(value):
                return k
        if isinstance(value, Quantised):
            self.all.append(Source(None, {value.bits: value}))
        else:
            self.all.append(Source(value, {}))
        same_name.append(len(self.all) - 1)
        return same_name[-1]

    def join(self) -> tuple[dict[str, Tensor], list]:
        """Return joined tensors, and the layout of every source."""
        parts: Parts = {}
        layouts = [source.append_to(parts) for source in self.all]
        return concatenate(parts), layouts


@dataclass
class StoredSource:
    """A source that was read; coarser precisions are computed on demand."""

    value: Value
    scales: dict[int, Tensor]
    more: dict[int, tuple[Tensor, int]]

    def at(self, bits: int) -> Value:
        """Return the whole value at a precision; a value that is not quantised is a tensor."""
        if isinstance(self.value, Quantised):
            if bits == self.value.bits:
                return self.value
            return refined(self.value, self.scales[bits], bits, *self.more[bits])
        if not self.scales or bits == 32:
            return self.value
        return Quantised(*integers(self.value, bits, scale=self.scales[bits]), bits)


def read_sources(
    tensors: Mapping[str, Tensor], layouts: Sequence[SourceLayout]
) -> list[StoredSource]:
    """Split the joined tensors of a family file into sources; raises ValueError if they misfit."""
    reader = TensorReader(tensors)
    found = [_read_source(reader, *source) for source in layouts]
    reader.finish()
    return found


def _read_source(
    reader: TensorReader,
    shape: list[int],
    kind: str | int,
    scale_shape: list[int] | None,
    coarser: Sequence[tuple[int, int, int]],
) -> StoredSource:
    if isinstance(kind, str) and coarser and kind != "float32":
        raise ValueError(f"no precisions of {kind}")
    value = reader.value(shape, kind, None if isinstance(kind, str) else scale_shape)
    scales = {bits: reader.scale(scale_shape or []) for bits, _, _ in coarser}
    for scale in [*scales.values(), *([] if isinstance(value, Tensor) else [value.scale])]:
        check_scale(scale, shape)
    more = {bits: (reader("refined", n), width) for bits, width, n in coarser if width}
    return StoredSource(value, scales, more)


def shape_of(value: Value) -> torch.Size:
    """Return the shape of a tensor, or of the integers of a quantised weight."""
    return value.shape if isinstance(value, Tensor) else value.ints.shape


def leading(value: Value, shape: Sequence[int]) -> Value:
    """Return a copy of the first entries of ``value`` in every dimension.

    Raises:
        ValueError: ``value`` is smaller than ``shape``.
    """
    if not _fits(shape, shape_of(value)):
        raise ValueError("a part is larger than its source")
    if isinstance(value, Quantised):
        scale = value.scale[: shape[0]] if value.scale.dim() else value.scale
        return Quantised(_cut(value.ints, shape), scale.clone(), value.bits)
    return _cut(value, shape)


def equal(one: Value, other: Value) -> bool:
    """True if two values are equal to the last bit."""
    if isinstance(one, Quantised) and isinstance(other, Quantised):
        same = torch.equal(one.ints, other.ints) and torch.equal(one.scale, other.scale)
        return same and one.bits == other.bits
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return False


def _fits(part: Sequence[int], whole: Sequence[int]) -> bool:
    return len(part) == len(whole) and all(n <= m for n, m in zip(part, whole, strict=True))


def _cut(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(0, n) for n in shape)].clone()
