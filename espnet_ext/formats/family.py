"""One file that holds every member of a family: all depths, widths and precisions.

A family file is a file of packed weights (see ``packed``). Values that members share are stored
once (see ``family_sources``). What is read is to the last bit what stage 5 deploys; writing checks
that.

The joined tensors are ``integers``, ``refined`` (uint8), ``scales`` (float32) and one of each other
type, in the order of the sources in the layout:

    config    ESPnet's config.yaml of the first member
    sources   see ``family_sources``
    shapes    [[[name, shape], ...], ...]
    members   {layers, width, bits, bytes, divergence, config (keys that differ from the first),
              names (index into shapes), sources (index of each name's source)}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path
from espnet_ext.formats.family_sources import (
    SourceCollection,
    equal,
    leading,
    read_sources,
    shape_of,
)
from espnet_ext.formats.layout import check_family
from espnet_ext.formats.packed import State, file_content, read_content, reading
from espnet_ext.formats.value_checks import check_state
from espnet_ext.methods.nested_options import Member

FAMILY = "family 1"  # kind of file, and the version of its format


@dataclass(frozen=True)
class Entry:
    """A member as a family file lists it.

    ``divergence`` is the KL divergence of its posteriors from the first member's in nats per frame,
    on the speech used for writing; None if the model has no CTC output and no classes.
    """

    member: Member
    bytes: int  # of the file that stage 5 deploys it to
    divergence: float | None
    config: Mapping[str, Any]  # its ESPnet config.yaml


def write_family(found: Sequence[tuple[Entry, State]], path: Path) -> None:
    """Write a family file, whole or not at all, and only if every member is read back unchanged.

    Args:
        found: the members with their states (see ``bits.quantised_state``), the largest first.
        path: of the file.

    Raises:
        UserError: NaN or infinite values.
    """
    for _, state in found:
        check_state(state)
    collection = SourceCollection()
    # The most bits first: fewer bits are stored as refinements of them.
    order = sorted(range(len(found)), key=lambda k: -found[k][0].member.bits)
    sources = {k: collection.add(found[k][1]) for k in order}
    tensors, layouts = collection.join()
    shapes: list[list] = []
    members = []
    first = found[0][0].config
    for k, (entry, state) in enumerate(found):
        names = [[name, list(shape_of(value))] for name, value in state.items()]
        if names not in shapes:
            shapes.append(names)
        members.append(
            {
                "layers": list(entry.member.layers),
                "width": entry.member.width,
                "bits": entry.member.bits,
                "bytes": entry.bytes,
                "divergence": entry.divergence,
                "config": {key: v for key, v in entry.config.items() if v != first.get(key)},
                "names": shapes.index(names),
                "sources": sources[k],
            }
        )
    layout = {"config": dict(first), "sources": layouts, "shapes": shapes, "members": members}
    with atomic_path(path) as temporary:
        temporary.write_bytes(file_content(tensors, layout, FAMILY))
        read = FamilyFile(temporary)
        for entry, state in found:
            _compare(entry, state, read)


class FamilyFile:
    """A family file that was read; its digests were compared.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """

    def __init__(self, path: Path):
        self.path = path
        tensors, layout = read_content(path, FAMILY)
        with reading(path):
            self._layout = check_family(layout)
            self.entries = self._read_entries()
            self._sources = read_sources(tensors, self._layout.sources)

    def state(self, entry: Entry) -> State:
        """Return the state of a member of ``entries``.

        Raises:
            UserError: parts that do not fit each other, NaN or infinite values.
        """
        with reading(self.path):
            listed = self._layout.members[self.entries.index(entry)]
            names = self._layout.shapes[listed.names]
            state = {
                name: leading(self._sources[place].at(entry.member.bits), shape)
                for (name, shape), place in zip(names, listed.sources, strict=True)
            }
            check_state(state)
        return state

    def _read_entries(self) -> list[Entry]:
        return [
            Entry(
                Member(tuple(listed.layers), listed.width, listed.bits),
                listed.bytes,
                listed.divergence,
                {**self._layout.config, **listed.config},
            )
            for listed in self._layout.members
        ]


def choose(
    entries: Sequence[Entry],
    depth: int | Sequence[int] | None = None,
    width: int | None = None,
    bits: int | None = None,
    max_bytes: int | None = None,
) -> Entry:
    """Return the best member that fits, the first of ``ranked``, whose arguments it has."""
    return ranked(entries, depth, width, bits, max_bytes)[0]


def ranked(
    entries: Sequence[Entry],
    depth: int | Sequence[int] | None = None,
    width: int | None = None,
    bits: int | None = None,
    max_bytes: int | None = None,
) -> list[Entry]:
    """Return the members that fit, the best first: its posteriors are nearest to the largest's.

    Best is the least ``divergence``; without one, or among equal ones, the most bytes.

    Args:
        entries: of a file.
        depth: number of layers, or the list of layers (from 0).
        width: inner units of the feed-forward networks.
        bits: of the weights.
        max_bytes: largest size of the member's file.

    Raises:
        UserError: the family has no such member, or none is small enough.
    """
    asked = {"depth": depth, "width": width, "bits": bits}
    wanted = {name: _text(value) for name, value in asked.items() if value is not None}
    for name, text in wanted.items():
        known = {v: None for entry in entries for v in _values(entry.member)[name]}
        if text not in known:
            listed = ", ".join(v for v in known if not v.startswith("["))
            raise UserError(f"the family has no member of {name} {text}; it has {listed}")
    fitting = [
        entry
        for entry in entries
        if all(text in _values(entry.member)[name] for name, text in wanted.items())
    ]
    if not fitting:
        words = ", ".join(f"{name} {text}" for name, text in wanted.items())
        listed = ", ".join(entry.member.name for entry in entries)
        raise UserError(f"the family has no member of {words} together; it has {listed}")
    small = [e for e in fitting if max_bytes is None or e.bytes <= max_bytes]
    if not small:
        least = min(fitting, key=lambda entry: entry.bytes)
        raise UserError(
            f"no member fits into {max_bytes:,} bytes; the smallest, {least.member.name}, "
            f"needs {least.bytes:,}"
        )
    return sorted(small, key=_rank)


def _rank(entry: Entry) -> tuple[float, int]:
    return math.inf if entry.divergence is None else entry.divergence, -entry.bytes


def _values(member: Member) -> dict[str, list[str]]:
    """Return the values of each argument of ``choose`` that a member fits."""
    return {
        "depth": [_text(len(member.layers)), _text(member.layers)],
        "width": [_text(member.width)],
        "bits": [_text(member.bits)],
    }


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, Sequence) else str(value)


def _compare(entry: Entry, state: State, read: FamilyFile) -> None:
    """Raise RuntimeError if a member that was read differs from the one that was written."""
    found = read.state(next(e for e in read.entries if e.member == entry.member))
    if list(found) != list(state) or not all(equal(found[n], v) for n, v in state.items()):
        raise RuntimeError(f"{entry.member.name} changed by writing it to the family file")
