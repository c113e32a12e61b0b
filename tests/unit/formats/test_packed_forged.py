"""Packed and family files whose digests are right and whose content is not: refused in one line."""

import copy
import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_ext.errors import UserError
from espnet_ext.formats import layout as layouts
from espnet_ext.formats import packed
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.family import FAMILY, Entry, FamilyFile, write_family
from espnet_ext.formats.packed import (
    CODED_MEMBER,
    MEMBER,
    file_content,
    read_content,
    read_member,
)
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.quantise import integers, scale_by_maximum

VALUES = [None, True, -1, 0, 1, 7, 32, 10**9, 10**30, 0.5, 1e308, float("nan"), "", "x", "float32"]
VALUES += ["integers", "int64", "complex64", [], [1], [-1], [0, 10**30], [[]], {}, {"a": 1}]


def weight(bits: int) -> Quantised:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 4, generator=generator)
    return Quantised(*integers(wide, bits, scale=scale_by_maximum(wide, bits)), bits)


def state(bits: int) -> packed.State:
    return {"a.weight": weight(bits), "a.bias": torch.arange(6.0), "count": torch.tensor(3)}


def write(kind: str, path: Path) -> None:
    if kind in (MEMBER, CODED_MEMBER):
        packed.write_member(state(4), path, kind == CODED_MEMBER)
    else:
        members = [Member((0, 1), 6, bits) for bits in (8, 4, 2)]
        write_family([(Entry(m, 100, 0.0, {"a": 1}), state(m.bits)) for m in members], path)


def read(kind: str, path: Path) -> list[packed.State]:
    if kind in (MEMBER, CODED_MEMBER):
        return [read_member(path)]
    file = FamilyFile(path)
    return [file.state(entry) for entry in file.entries]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a layout."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def forged(layout: Any, place: tuple, value: Any) -> Any:
    """A layout with another value at a place; the value "delete" removes what is there."""
    if not place:
        return value
    changed = copy.deepcopy(layout)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


def refused_or_whole(kind: str, path: Path) -> bool:
    """True if the file is refused in one line; else its states are usable."""
    try:
        states = read(kind, path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)
        return True
    for value in (value for found in states for value in found.values()):
        if isinstance(value, Quantised):
            assert value.dequantised().shape == value.ints.shape
    return False


@pytest.mark.parametrize("kind", [MEMBER, CODED_MEMBER, FAMILY])
def test_any_value_of_a_layout_may_be_another(kind, tmp_path):
    path = tmp_path / "f.safetensors"
    write(kind, path)
    tensors, layout = read_content(path, kind)
    rng = random.Random(0)
    refused = tried = 0
    for place in places(layout):
        for value in ["delete", *rng.sample(VALUES, 6)]:
            path.write_bytes(file_content(dict(tensors), forged(layout, place, value), kind))
            refused += refused_or_whole(kind, path)
            tried += 1
    assert refused > 0.7 * tried > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MEMBER, CODED_MEMBER, FAMILY])
def test_any_tensor_and_layout_may_be_another(kind, tmp_path):
    path = tmp_path / "f.safetensors"
    write(kind, path)
    tensors, layout = read_content(path, kind)
    json_values = st.recursive(
        st.sampled_from(VALUES) | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    )
    kinds = st.sampled_from(["uint8", "int8", "float32", "float16", "bool", "complex64", "int64"])

    @settings(
        max_examples=2000,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        place=st.sampled_from(list(places(layout))),
        value=json_values,
        name=st.sampled_from([*tensors, "new"]),
        kind_of=kinds,
        size=st.lists(st.integers(0, 40), min_size=1, max_size=2),
        both=st.integers(0, 2),
    )
    def forge(place, value, name, kind_of, size, both):
        parts = dict(tensors)
        if both != 0:
            parts[name] = torch.ones(size, dtype=getattr(torch, kind_of))
        changed = layout if both == 1 else forged(layout, place, value)
        path.write_bytes(file_content(parts, changed, kind))
        refused_or_whole(kind, path)

    forge()


def test_named_forgeries_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    tensors, layout = packed.join_tensors(state(4))
    weight_at, bias_at, count_at = layout

    def refuse(parts: dict[str, torch.Tensor], order: Any) -> None:
        path.write_bytes(file_content(dict(parts), order, MEMBER))
        with pytest.raises(UserError, match=r"f\.safetensors is damaged .*; get it again"):
            read_member(path)

    refuse(tensors, [[weight_at[0], [6, 4], 4, [1, 6]], bias_at, count_at])  # along the inputs
    refuse(tensors, [[weight_at[0], [4, 6], 4, [6, 1]], bias_at, count_at])
    refuse(tensors, [weight_at, ["a.weight", *bias_at[1:]], count_at])  # a name twice
    refuse(tensors, [[weight_at[0], [6, 4], 32, [6, 1]], bias_at, count_at])
    refuse({**tensors, "scales": -tensors["scales"]}, layout)
    refuse({**tensors, "scales": 0 * tensors["scales"]}, layout)
    refuse({**tensors, "scales": tensors["scales"].double()}, layout)
    refuse({**tensors, "integers": tensors["integers"].to(torch.int16)}, layout)
    refuse({**tensors, "integers": torch.full_like(tensors["integers"], 0x88)}, layout)  # -8
    refuse({**tensors, "float32": tensors["float32"].to(torch.complex64)}, layout)
    refuse({**tensors, "float32": tensors["float32"].view(2, 3)}, layout)
    refuse({**tensors, "complex64": torch.ones(0, dtype=torch.complex64)}, layout)
    refuse(tensors, {"a": layout})


@pytest.mark.parametrize("kind", [MEMBER, CODED_MEMBER, FAMILY])
def test_a_layout_that_expands_without_limit_is_refused(kind, tmp_path, monkeypatch):
    path = tmp_path / "f.safetensors"
    write(kind, path)
    tensors, _ = read_content(path, kind)
    bomb = zlib.compress(b'["' + b"a" * (1 << 27) + b'"]', 1)
    monkeypatch.setattr(packed, "compressed", lambda layout: bomb)
    path.write_bytes(file_content(dict(tensors), None, kind))
    start = time.process_time()
    with pytest.raises(UserError, match=r"is damaged \(ValueError\); get it again"):
        read(kind, path)
    assert time.process_time() - start < 1  # reading no more than MOST of it
    for text in (b"[" * 100_000 + b"]" * 100_000, b"[]"[:1], b"\xff", b""):
        monkeypatch.setattr(packed, "compressed", lambda layout, text=text: zlib.compress(text))
        path.write_bytes(file_content(dict(tensors), None, kind))
        with pytest.raises(UserError, match="is damaged"):
            read(kind, path)


def test_a_layout_that_would_not_be_read_is_not_written():
    with pytest.raises(ValueError, match="too long for a packed file"):
        layouts.compressed(["a" * layouts.MOST])
