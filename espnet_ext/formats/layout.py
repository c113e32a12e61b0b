"""The layout of a packed file: compressed JSON, checked before any tensor is cut by it."""

import json
import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from espnet_ext.validation import STRICT, Strict

# Of the JSON: far more than any model needs, and little enough for any machine. Compressed by
# zlib, 3 MB can be 3 GB.
MOST = 16 << 20
TYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
# The type of each joined tensor that is not named by it.
JOINED = {
    "layout": "uint8",
    "integers": "uint8",
    "huffman": "uint8",
    "refined": "uint8",
    "scales": "float32",
    "scales16": "float16",
    "codes": "uint8",
    "books": "float16",
    "masks": "uint8",
}

Size = Annotated[int, Field(ge=0, lt=1 << 40)]
Shape = Annotated[list[Size], Field(max_length=8)]
Bits = Literal[8, 6, 4, 3, 2]
# Shape, type or bits, shape of the scale, precisions: (bits, width of a refinement, its bytes).
Precision = tuple[Bits, Literal[0, 1, 2, 4, 8], Size]
Source = tuple[Shape, str | Bits, Shape | None, list[Precision]]
Value = tuple[str, Shape, str | Bits, Shape | None]


class MemberLayout(Strict):
    """A member of a family file."""

    layers: list[Size]
    width: Size | None
    bits: Literal[32, 8, 6, 4, 3, 2]
    bytes: Size
    divergence: Annotated[float, Field(ge=0)] | None
    config: dict[str, Any]
    names: Size
    sources: list[Size]


class FamilyLayout(Strict):
    """The layout of a family file; see ``family``."""

    config: dict[str, Any]
    sources: list[Source]
    shapes: list[list[tuple[str, Shape]]]
    members: Annotated[list[MemberLayout], Field(min_length=1)]


_VALUES = TypeAdapter(list[Value], config=STRICT)
_FAMILY = TypeAdapter(FamilyLayout)


def compressed(layout: Any) -> bytes:
    """Return a layout as it is stored."""
    text = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > MOST:
        raise ValueError(f"a layout of {len(text):,} bytes is too long for a packed file")
    return zlib.compress(text, 9)


def decompressed(content: bytes) -> Any:
    """Return a stored layout; raises ValueError if it is longer than MOST, or damaged."""
    reader = zlib.decompressobj()
    text = reader.decompress(content, MOST)
    if not reader.eof or reader.unused_data:
        raise ValueError("the layout is too long or incomplete")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the layout is nested too deeply") from None


def check_values(layout: Any) -> list[Value]:
    """Check the layout of a file of one member; raises ValueError."""
    found = _VALUES.validate_json(json.dumps(layout))
    _refuse_twice([name for name, *_ in found])
    return found


def check_family(layout: Any) -> FamilyLayout:
    """Check the layout of a family file; raises ValueError."""
    found = _FAMILY.validate_json(json.dumps(layout))
    for names in found.shapes:
        _refuse_twice([name for name, _ in names])
    for member in found.members:
        if len(set(member.layers)) < max(len(member.layers), 1):
            raise ValueError("a member has a layer twice, or none")
    _refuse_twice([f"{m.layers} {m.width} {m.bits}" for m in found.members])
    return found


def _refuse_twice(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError("a name is given twice")
