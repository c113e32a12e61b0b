"""One file that holds every member of a family: all depths, widths and precisions.

A family file is stored as a file of one member is (``tasks.packed_file``). What members have in
common is in it once: a weight of a small member is the leading part of a large one's, and

- where 32 bits are offered, the float32 weights are stored, and the integers of 8, 4 and 2 bits
  are computed from them and the stored scales;
- else the integers of the most bits are stored, and those of fewer bits are computed from them and
  a few more bits (``methods.packing.refine``), since they are nearly but not quite a function of
  them: about 8.1 bits for a weight that is offered at 8, 4 and 2 bits, in place of 14.

So precisions are nested and nothing is lost: what comes out is to the last bit what stage 5
deploys, which writing checks. What is not a part of something that is stored, such as a member's
own normalisation statistics, is stored beside it.

The joined tensors are ``integers``, ``refined`` (uint8), ``scales`` (float32) and one of each other
type, in the order of the sources of the layout:

    config    ESPnet's config.yaml of the first member
    sources   [shape, type or bits, shape of scales or null, [[bits, width, bytes], ...]]: the last
              are the coarser precisions with what ``refine`` gave (0, 0 at float32)
    shapes    [[[name, shape], ...], ...]
    members   {layers, width, bits, bytes, divergence, config (what differs), names (index into
              shapes), sources (index of each name's)}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path
from espnet_ext.formats.bits import Quantised, pack, packed_bytes, refine, refined, unpack
from espnet_ext.formats.packed import State, Taker, guarded, read_stored, refuse_unusable, stored
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.quantise import BITS, integers

FAMILY = "family 1"  # kind of file, and the version of its format


@dataclass(frozen=True)
class Entry:
    """A member as a family file lists it.

    Attributes:
        member: which.
        bytes: of the file that stage 5 deploys it to.
        divergence: KL divergence of its posteriors from the first member's in nats a frame, on
            speech, as writing measured it; None if the model has no CTC output and no classes.
        config: ESPnet's config.yaml of it.
    """

    member: Member
    bytes: int
    divergence: float | None
    config: Mapping[str, Any]


def write_family(found: Sequence[tuple[Entry, State]], path: Path) -> None:
    """Write a family file, whole or not at all, and only if every member comes back as it was.

    Args:
        found: the members with their states (``packed_file``), the largest first.
        path: of the file.

    Raises:
        UserError: NaN or infinite values.
    """
    for _, state in found:
        refuse_unusable(state)
    sources = _Sources()
    order = sorted(range(len(found)), key=lambda k: -found[k][0].member.bits)
    places = {k: sources.place(found[k][1]) for k in order}
    tensors, layouts = sources.joined()
    shapes: list[list] = []
    listed = []
    first = found[0][0].config
    for k, (entry, state) in enumerate(found):
        names = [[name, list(_shape(value))] for name, value in state.items()]
        if names not in shapes:
            shapes.append(names)
        listed.append(
            {
                "layers": list(entry.member.layers),
                "width": entry.member.width,
                "bits": entry.member.bits,
                "bytes": entry.bytes,
                "divergence": entry.divergence,
                "config": {key: v for key, v in entry.config.items() if v != first.get(key)},
                "names": shapes.index(names),
                "sources": places[k],
            }
        )
    layout = {"config": dict(first), "sources": layouts, "shapes": shapes, "members": listed}
    with atomic_path(path) as temporary:
        temporary.write_bytes(stored(tensors, layout, FAMILY))
        read = FamilyFile(temporary)
        for entry, state in found:
            _compare(entry, state, read)


class FamilyFile:
    """A family file that was read and whose digests were compared.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """

    def __init__(self, path: Path):
        self.path = path
        tensors, layout = read_stored(path, FAMILY)
        self._layout = layout
        self.entries = guarded(path, self._read_entries)
        self._sources = guarded(path, lambda: _read_sources(tensors, layout["sources"]))

    def state(self, entry: Entry) -> State:
        """The state of a member of ``entries``.

        Raises:
            UserError: parts that do not fit each other, NaN or infinite values.
        """
        return guarded(self.path, lambda: self._state(entry))

    def _state(self, entry: Entry) -> State:
        listed = self._layout["members"][self.entries.index(entry)]
        names = self._layout["shapes"][listed["names"]]
        state: State = {}
        for (name, shape), place in zip(names, listed["sources"], strict=True):
            value = self._sources[place].at(entry.member.bits)
            if any(n > m for n, m in zip(shape, _shape(value), strict=True)):
                raise ValueError(f"{name} is larger than its source")
            state[name] = _leading(value, shape)
        refuse_unusable(state)
        return state

    def _read_entries(self) -> list[Entry]:
        config = self._layout["config"]
        return [
            Entry(
                Member(tuple(listed["layers"]), listed["width"], listed["bits"]),
                int(listed["bytes"]),
                listed["divergence"],
                {**config, **listed["config"]},
            )
            for listed in self._layout["members"]
        ]


def choose(
    entries: Sequence[Entry],
    depth: int | Sequence[int] | None = None,
    width: int | None = None,
    bits: int | None = None,
    max_bytes: int | None = None,
) -> Entry:
    """Return the best member that fits: the one whose posteriors are nearest to the largest's.

    Best is the least ``divergence``; where there is none, or several have the same, the most bytes.

    Args:
        entries: of a file.
        depth: number of layers, or the list of layers (from 0).
        width: inner units of the feed-forward networks.
        bits: of the weights.
        max_bytes: that the member's own file may have.

    Raises:
        UserError: the family lacks such a member, or none is small enough.
    """
    asked = {"depth": depth, "width": width, "bits": bits}
    fitting = list(entries)
    for name, wanted in asked.items():
        if wanted is None:
            continue
        values = {_text(v): None for e in entries for v in _values(e.member)[name]}
        if _text(wanted) not in values:
            known = ", ".join(v for v in values if not v.startswith("["))
            raise UserError(f"the family has no member of {name} {_text(wanted)}; it has {known}")
        fitting = [e for e in fitting if _text(wanted) in map(_text, _values(e.member)[name])]
    if not fitting:
        words = ", ".join(f"{name} {_text(v)}" for name, v in asked.items() if v is not None)
        known = ", ".join(entry.member.name for entry in entries)
        raise UserError(f"the family has no member of {words} together; it has {known}")
    if max_bytes is not None:
        small = [entry for entry in fitting if entry.bytes <= max_bytes]
        if not small:
            least = min(fitting, key=lambda entry: entry.bytes)
            raise UserError(
                f"no member fits into {max_bytes:,} bytes; the smallest, {least.member.name}, "
                f"takes {least.bytes:,}"
            )
        fitting = small
    return min(fitting, key=_rank)


def _rank(entry: Entry) -> tuple[float, int]:
    return math.inf if entry.divergence is None else entry.divergence, -entry.bytes


def _values(member: Member) -> dict[str, list]:
    """What may be asked for to get a member."""
    depths = [len(member.layers), list(member.layers)]
    return {"depth": depths, "width": [member.width], "bits": [member.bits]}


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, Sequence) else str(value)


@dataclass
class _Source:
    """What is stored once: a tensor, or the integers of the most bits; and coarser precisions."""

    tensor: Tensor | None
    forms: dict[int, Quantised]

    def holds(self, value: Tensor | Quantised) -> bool:
        """Whether ``value`` is the leading part of what is stored here."""
        whole = self.forms.get(value.bits) if isinstance(value, Quantised) else self.tensor
        if whole is None or len(_shape(whole)) != len(_shape(value)):
            return False
        if any(n > m for n, m in zip(_shape(value), _shape(whole), strict=True)):
            return False
        return _same(_leading(whole, _shape(value)), value)

    def takes(self, value: Tensor | Quantised) -> bool:
        """Whether ``value`` is all of what is stored here at fewer bits; then hold it too."""
        if not isinstance(value, Quantised) or value.bits in self.forms:
            return False
        whole = self.tensor if self.tensor is not None else self.forms[max(self.forms)]
        if _shape(whole) != _shape(value):
            return False
        if isinstance(whole, Quantised):
            try:
                refine(whole, value)
            except ValueError:
                return False
        elif not torch.equal(integers(whole, value.bits, scale=value.scale)[0], value.ints):
            return False
        self.forms[value.bits] = value
        return True


class _Sources:
    """What the members of a family are made of, each thing once."""

    def __init__(self) -> None:
        self.all: list[_Source] = []
        self.named: dict[str, list[int]] = {}

    def place(self, state: State) -> list[int]:
        """For each value of a state its source, a new one where there is none."""
        return [self._place(name, value) for name, value in state.items()]

    def _place(self, name: str, value: Tensor | Quantised) -> int:
        own = self.named.setdefault(name, [])
        # A layer may have another number in a small member: then other names are looked at.
        others = (k for k in range(len(self.all)) if k not in own)
        for k in own:
            if self.all[k].holds(value) or self.all[k].takes(value):
                return k
        for k in others:
            if self.all[k].holds(value):
                return k
        plain = isinstance(value, Tensor)
        self.all.append(_Source(value, {}) if plain else _Source(None, {value.bits: value}))
        own.append(len(self.all) - 1)
        return own[-1]

    def joined(self) -> tuple[dict[str, Tensor], list]:
        """Joined tensors, and the layout of every source."""
        parts: dict[str, list[Tensor]] = {}
        layouts = []
        for source in self.all:
            order = sorted(source.forms, reverse=True)
            if source.tensor is not None:
                kind: str | int = str(source.tensor.dtype).removeprefix("torch.")
                parts.setdefault(str(kind), []).append(source.tensor.flatten().cpu())
                coarser = [[bits, 0, 0] for bits in order]
                shape = list(source.tensor.shape)
            else:
                finest = source.forms[order[0]]
                kind, shape = finest.bits, list(finest.ints.shape)
                parts.setdefault("integers", []).append(pack(finest.ints.flatten(), finest.bits))
                coarser = []
                for bits in order[1:]:
                    more, width = refine(finest, source.forms[bits])
                    parts.setdefault("refined", []).append(more)
                    coarser.append([bits, width, len(more)])
            for bits in order:
                parts.setdefault("scales", []).append(source.forms[bits].scale.flatten().float())
            scales = list(source.forms[order[0]].scale.shape) if order else None
            layouts.append([shape, kind, scales, coarser])
        return {kind: torch.cat(some) for kind, some in parts.items()}, layouts


@dataclass
class _Stored:
    """A source as it was read; its coarser precisions are computed when they are asked for."""

    tensor: Tensor | None
    finest: Quantised | None
    scales: dict[int, Tensor]
    more: dict[int, tuple[Tensor, int]]

    def at(self, bits: int) -> Tensor | Quantised:
        """The whole value at a precision; of what is not quantised the tensor."""
        if self.finest is not None:
            if bits == self.finest.bits:
                return self.finest
            return refined(self.finest, self.scales[bits], bits, *self.more[bits])
        assert self.tensor is not None
        if not self.scales or bits == 32:
            return self.tensor
        return Quantised(*integers(self.tensor, bits, scale=self.scales[bits]), bits)


def _read_sources(tensors: Mapping[str, Tensor], layouts: list) -> list[_Stored]:
    """Take the joined tensors of a family file apart."""
    take = Taker(tensors)
    found = []
    for shape, kind, scale_shape, coarser in layouts:
        count = math.prod(shape)
        tensor = ints = None
        if kind in BITS:
            ints = unpack(take("integers", packed_bytes(count, kind)), kind, count).view(shape)
        else:
            tensor = take(kind, count).view(shape)
        precisions = [kind] * (ints is not None) + [bits for bits, _, _ in coarser]
        scales = {b: take("scales", math.prod(scale_shape)).view(scale_shape) for b in precisions}
        more = {b: (take("refined", size), width) for b, width, size in coarser if width}
        finest = None if ints is None else Quantised(ints, scales[kind], kind)
        found.append(_Stored(tensor, finest, scales, more))
    take.finish()
    return found


def _compare(entry: Entry, state: State, read: FamilyFile) -> None:
    """Raise RuntimeError if a member that was read is not the one that was written."""
    found = read.state(next(e for e in read.entries if e.member == entry.member))
    if list(found) != list(state) or not all(_same(found[n], v) for n, v in state.items()):
        raise RuntimeError(f"{entry.member.name} does not come back from the family file")


def _shape(value: Tensor | Quantised) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else value.ints.shape


def _leading(value: Tensor | Quantised, shape: Sequence[int]) -> Tensor | Quantised:
    """The part of ``value`` with the first entries of every dimension."""
    if isinstance(value, Quantised):
        scale = value.scale[: shape[0]] if value.scale.dim() else value.scale
        return Quantised(_cut(value.ints, shape), scale.clone(), value.bits)
    return _cut(value, shape)


def _cut(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(0, n) for n in shape)].clone()


def _same(one: Tensor | Quantised, other: Tensor | Quantised) -> bool:
    """Whether two values are equal to the last bit."""
    if isinstance(one, Quantised) and isinstance(other, Quantised):
        same = torch.equal(one.ints, other.ints) and torch.equal(one.scale, other.scale)
        return same and one.bits == other.bits
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return False
