"""Files of packed weights: one member of a family, as stage 5 deploys it at fewer than 32 bits.

A file is a safetensors file, so it holds no code. Its metadata has one entry, ``espnet_ext``:
JSON with the ``kind`` of the file and the SHA-256 of each tensor. Names and records of hundreds
of small tensors would add 10 % to a small model, so tensors are joined:

    layout     uint8, JSON compressed by zlib: [[name, shape, type, shape of the scale], ...]
    integers   uint8, the integers of every quantised weight in b bits each (``bits.pack``); each
               weight starts at a new byte
    scales     float32, the scales of every quantised weight, but for
    scales16   float16, those of groups of inputs (``methods.quantise``)
    codes      uint8, the codes of tables (``methods.codes``)
    books      float16, their codebooks; then the row that tokens without one share
    masks      uint8, of such tables a bit for each token, 1 if it has a separate row
    float32    all other tensors of that type; other types likewise

in the order of ``layout``, where the type of a quantised weight is its bits, that of a table
``codes``, or ``rows`` (shape: tokens, parts) if tokens share a row, with the shape of its codebooks
in the place of that of a scale, which is null for other tensors. If other tokens have a separate
table, the type is ``mixed`` and the type of that; both shapes go on with its parts and the
shape of its codebooks. Of ``sinusoids``
(``methods.positions``) a file has the shape only. A file of n weights at b bits and
s scales, with m other float32 numbers, has n b / 8 + 4 s + 4 m bytes plus other types, layout and
header, which is at most 1,024 bytes and less than 10 bytes for each name.
"""

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from espnet_ext.errors import UserError, one_line
from espnet_ext.files import atomic_path
from espnet_ext.formats.bits import Quantised, Stored, pack, packed_bytes, unpack
from espnet_ext.formats.layout import JOINED, TYPES, check_values, compressed, decompressed
from espnet_ext.methods.codes import CODES, Coded
from espnet_ext.methods.positions import Sinusoids
from espnet_ext.methods.quantise import has_groups, largest_integer
from espnet_ext.methods.tensors import refuse_not_finite

_MOST_SINUSOIDS = 1 << 26  # numbers: a file without data cannot ask for all memory
_MIXED = "mixed "
MEMBER = "member 1"  # kind of file, and the version of its format
State = dict[str, Tensor | Stored]
Parts = dict[str, list[Tensor]]  # tensors to be joined, by the name of the joined tensor
# What parts that do not fit each other raise.
_MISFITS = (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError, zlib.error)


def member_bytes(state: State) -> bytes:
    """Return the content of a file that holds one member.

    Args:
        state: of ``bits.quantised_state``.

    Raises:
        UserError: NaN or infinite values.
    """
    return file_content(*join_tensors(state), MEMBER)


def write_member(state: State, path: Path) -> None:
    """Write a file that holds one member, whole or not at all."""
    content = member_bytes(state)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_member(path: Path) -> State:
    """Read a file that ``write_member`` wrote.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """
    tensors, layout = read_content(path, MEMBER)
    with reading(path):
        return split_tensors(tensors, layout)


def dequantised(state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
    """Return a state dict of plain tensors."""
    return {n: v if isinstance(v, Tensor) else v.dequantised() for n, v in state.items()}


def check_state(state: State) -> None:
    """Check every value of a state.

    Raises:
        UserError: NaN or infinite entries.
        ValueError: a type that files do not hold, or integers and scale that do not fit.
    """
    for name, value in state.items():
        if isinstance(value, Coded):
            _check_coded(value, name)
        elif isinstance(value, Sinusoids):
            continue
        elif isinstance(value, Quantised):
            _check(value.scale, name)
            _check_quantised(value, name)
        else:
            _check(value, name)


def join_tensors(state: State) -> tuple[dict[str, Tensor], list]:
    """Join the values of a state into few tensors; return these and the layout.

    Raises:
        UserError: NaN or infinite values.
    """
    check_state(state)
    parts: Parts = {}
    layout = [[name, *append_value(value, parts)] for name, value in state.items()]
    return concatenate(parts), layout


def append_value(value: Tensor | Stored, parts: Parts) -> list:
    """Append a value to ``parts``; return [shape, type or bits, shape of the scale or None]."""
    if isinstance(value, Sinusoids):
        return [list(value.shape), "sinusoids", None]
    if isinstance(value, Coded):
        return _append_coded(value, parts)
    if isinstance(value, Quantised):
        parts.setdefault("integers", []).append(pack(value.ints.flatten(), value.bits))
        half = has_groups(value.scale.shape)
        scale = value.scale.flatten()
        parts.setdefault(_scales(value.scale.shape), []).append(
            scale.half() if half else scale.float()
        )
        return [list(value.ints.shape), value.bits, list(value.scale.shape)]
    kind = str(value.dtype).removeprefix("torch.")
    parts.setdefault(kind, []).append(value.detach().flatten().cpu())
    return [list(value.shape), kind, None]


def _append_coded(table: Coded, parts: Parts) -> list:
    parts.setdefault("codes", []).append(table.codes.flatten().cpu())
    parts.setdefault("books", []).append(table.books.flatten().half().cpu())
    if table.kept is None or table.rest is None:
        return [list(table.codes.shape), "codes", list(table.books.shape)]
    shape, sizes = [len(table.kept), table.codes.shape[1]], list(table.books.shape)
    parts.setdefault("masks", []).append(pack(table.kept.to(torch.int8), 1))
    if isinstance(table.rest, Tensor):
        parts["books"].append(table.rest.half().cpu())
        return [shape, "rows", sizes]
    (_, *more), kind, inner = _append_coded(table.rest, parts)
    return [[*shape, *more], f"{_MIXED}{kind}", [*sizes, *inner]]


def concatenate(parts: Parts) -> dict[str, Tensor]:
    """Join the tensors of each kind."""
    return {kind: torch.cat(some) for kind, some in parts.items()}


def split_tensors(tensors: Mapping[str, Tensor], layout: list) -> State:
    """Return the state that ``join_tensors`` joined; raises one of _MISFITS if it cannot be."""
    reader = TensorReader(tensors)
    values = check_values(layout)
    state = {name: reader.value(shape, kind, scale) for name, shape, kind, scale in values}
    reader.finish()
    check_state(state)
    return state


class TensorReader:
    """Reads joined tensors piece by piece, from beginning to end."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.positions = dict.fromkeys(tensors, 0)

    def __call__(self, kind: str, count: int) -> Tensor:
        """Return the next ``count`` entries of the tensor ``kind``."""
        start = self.positions[kind]
        self.positions[kind] = start + count
        if count < 0 or start + count > len(self.tensors[kind]):
            raise ValueError(f"{kind} is too short")
        return self.tensors[kind][start : start + count].clone()

    def value(self, shape: list[int], kind: Any, scale_shape: list[int] | None) -> Any:
        """Return the next value, of which ``append_value`` returned the arguments."""
        count = math.prod(shape)
        if str(kind).removeprefix(_MIXED) in ("codes", "rows"):
            return self._coded(shape, scale_shape or [], kind)
        if kind == "sinusoids":
            if len(shape) != 2 or shape[1] % 2 or count > _MOST_SINUSOIDS:
                raise ValueError(f"no sinusoids of the shape {shape}")
            return Sinusoids((shape[0], shape[1]))
        if isinstance(kind, str):
            if kind not in TYPES or scale_shape is not None:
                raise ValueError(f"no values of the type {kind}")
            return self(kind, count).view(shape)
        ints = unpack(self("integers", packed_bytes(count, kind)), kind, count)
        return Quantised(ints.view(shape), self.scale(scale_shape or []), kind)

    def _coded(self, shape: list[int], sizes: list[int], kind: str) -> Coded:
        """Return the next table, of which ``_append_coded`` returned the arguments."""
        tokens, parts, *more = shape
        books = self("books", math.prod(sizes[:3])).float().view(sizes[:3])
        if kind == "codes":
            return Coded(self("codes", tokens * parts).view(shape), books)
        mask = self("masks", packed_bytes(tokens, 1))
        kept = unpack(mask, 1, tokens, signed=False).bool()
        count = int(kept.sum())
        codes = self("codes", count * parts).view(count, parts)
        if kind == "rows":
            return Coded(codes, books, kept, self("books", sizes[0] * sizes[2]).float())
        inner = self._coded([tokens - count, *more], sizes[3:], kind.removeprefix(_MIXED))
        return Coded(codes, books, kept, inner)

    def scale(self, shape: list[int]) -> Tensor:
        """Return the next scale."""
        return self(_scales(shape), math.prod(shape)).float().view(shape)

    def finish(self) -> None:
        """Raise ValueError if anything is left."""
        for kind, position in self.positions.items():
            if position != len(self.tensors[kind]):
                raise ValueError(f"{kind} is too long")


def _scales(shape: Sequence[int]) -> str:
    """The joined tensor that holds a scale."""
    return "scales16" if has_groups(shape) else "scales"


def file_content(tensors: dict[str, Tensor], layout: Any, kind: str) -> bytes:
    """Return the content of a file with ``tensors``, their SHA-256 and a layout (JSON)."""
    packed = torch.frombuffer(bytearray(compressed(layout)), dtype=torch.uint8)
    tensors = {"layout": packed} | tensors
    header = {"kind": kind, "sha256": {name: _digest(t) for name, t in sorted(tensors.items())}}
    return save(tensors, {"espnet_ext": json.dumps(header)})


def read_content(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Read tensors and layout of ``file_content``, and compare their digests.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("espnet_ext", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path} is truncated or damaged ({reason}); get it again") from None
    if not isinstance(header, dict) or header.get("kind") != kind:
        found = header.get("kind") if isinstance(header, dict) else "something else"
        found = " ".join(str(found).split())[:80]
        raise UserError(f"{path} holds {found}, not {kind} of espnet_ext; give another file")
    digests = header.get("sha256")
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise UserError(f"{path} was changed after it was written: its tensors; get it again")
    for name, tensor in tensors.items():
        kind_of = str(tensor.dtype).removeprefix("torch.")
        if tensor.dim() != 1 or kind_of != JOINED.get(name, name) or kind_of not in TYPES:
            raise UserError(f"{path} is damaged (tensor {name!r}); get it again")
        if _digest(tensor) != digests[name]:
            raise UserError(
                f"{path} was changed after it was written: {name} has another SHA-256; get it again"
            )
    with reading(path):
        return tensors, decompressed(bytes(tensors.pop("layout").numpy()))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in errors of the block, which reads its parts.

    Raises:
        UserError: the parts do not fit each other, or a UserError of the block.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except _MISFITS as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); get it again") from None


def _digest(tensor: Tensor) -> str:
    """Return the SHA-256 of type, shape and content."""
    content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    content.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _check(tensor: Tensor, name: str) -> None:
    if str(tensor.dtype).removeprefix("torch.") not in TYPES:
        raise ValueError(f"{name} has a type that files do not hold: {tensor.dtype}")
    refuse_not_finite(tensor, name)


def _check_coded(value: Coded, name: str) -> None:
    """Check a table, and the one inside it, if any; the errors are those of ``check_state``."""
    _check(value.books, name)
    if isinstance(value.rest, Tensor):
        _check(value.rest, name)
    check_coded(value)
    if isinstance(value.rest, Coded):
        _check_coded(value.rest, name)


def _check_quantised(value: Quantised, name: str) -> None:
    """Raise ValueError unless integers and scale are such as quantisation makes."""
    check_scale(value.scale, value.ints.shape, groups=True)
    limit = largest_integer(value.bits)
    if not ((value.ints >= -limit).all() and (value.ints <= limit).all()):
        raise ValueError(f"{name} has integers that {value.bits} bits do not have")


def check_coded(value: Coded) -> None:
    """Raise ValueError unless codes (rows, parts) and codebooks (parts, 256, size) fit."""
    codes, books = value.codes, value.books
    if value.kept is not None and int(value.kept.sum()) != len(codes):
        raise ValueError(f"{len(codes)} rows for {int(value.kept.sum())} tokens")
    fits = codes.dtype == torch.uint8 and codes.dim() == 2 and books.dim() == 3
    if not fits or books.shape[:2] != (codes.shape[1], CODES):
        raise ValueError(f"codebooks {list(books.shape)} for codes {list(codes.shape)}")
    if isinstance(value.rest, Coded):
        rest = value.rest
        tokens = len(rest.codes) if rest.kept is None else len(rest.kept)
        width = books.shape[0] * books.shape[2]
        if value.kept is None or tokens + len(codes) != len(value.kept):
            raise ValueError(f"{tokens} other tokens of a table of {len(codes)} rows")
        if rest.books.dim() != 3 or rest.books.shape[0] * rest.books.shape[2] != width:
            raise ValueError(f"other tokens have rows {list(rest.books.shape)}, not of {width}")


def check_scale(scale: Tensor, shape: Sequence[int], groups: bool = False) -> None:
    """Raise ValueError unless a scale fits a weight of ``shape`` and is positive, or NaN."""
    number = scale.shape[1] if groups and has_groups(scale.shape) else 1
    fits = math.prod(shape[1:]) % number == 0
    one = [*shape[:1], *[number] * (len(shape) > 1), *[1] * (len(shape) - 2)]
    if list(scale.shape) not in ([], one) or not fits:
        raise ValueError(f"a scale of shape {list(scale.shape)} for a weight {list(shape)}")
    if (scale <= 0).any():
        raise ValueError("a scale is not positive")
