"""Files of packed weights: one member of a family, as stage 5 deploys it at fewer than 32 bits.

A file is a safetensors file, so it holds no code. Its metadata has one entry, ``espnet_ext``:
JSON with the ``kind`` of the file and the SHA-256 of each tensor. Names and records of hundreds
of small tensors would add 10 % to a small model, so tensors are joined:

    layout     uint8, JSON compressed by zlib: [[name, shape, type, shape of the scale], ...]
    integers   uint8, the integers of every quantised weight in b bits each (``bits.pack``); each
               weight starts at a new byte
    huffman    in a file of the kind ``member 2`` in place of integers, codes and books; uint8, by
               Huffman codes: of a weight its integers (``huffman.encode``), of a table the codes of
               each part, then the codebooks (``huffman.encode_bytes``)
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
(``methods.positions``) a file has the shape only. Without Huffman codes a file of n weights at b
bits and s scales, with m other float32 numbers, has n b / 8 + 4 s + 4 m bytes plus other types,
layout and header, which is at most 1,024 bytes and less than 10 bytes for each name.
"""

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from espnet_ext.errors import UserError, one_line
from espnet_ext.files import atomic_path
from espnet_ext.formats import huffman
from espnet_ext.formats.bits import Quantised, Stored, pack, packed_bytes, unpack
from espnet_ext.formats.layout import JOINED, TYPES, check_values, compressed, decompressed
from espnet_ext.formats.value_checks import check_state
from espnet_ext.methods.codes import Coded
from espnet_ext.methods.positions import Sinusoids
from espnet_ext.methods.quantise import has_groups

_MOST_SINUSOIDS = 1 << 26  # numbers: a file without data cannot ask for all memory
_MIXED = "mixed "
MEMBER = "member 1"  # kind of file, and the version of its format
CODED_MEMBER = "member 2"  # the same with Huffman codes
State = dict[str, Tensor | Stored]
Parts = dict[str, list[Tensor]]  # tensors to be joined, by the name of the joined tensor
# What parts that do not fit each other raise.
_MISFITS = (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError, zlib.error)


def member_bytes(state: State, coded: bool = False) -> bytes:
    """Return the content of a file that holds one member.

    Args:
        state: of ``bits.quantised_state``.
        coded: integers by Huffman codes.

    Raises:
        UserError: NaN or infinite values.
    """
    return file_content(*join_tensors(state, coded), CODED_MEMBER if coded else MEMBER)


def write_member(state: State, path: Path, coded: bool = False) -> None:
    """Write the ``member_bytes`` of a state, whole or not at all."""
    content = member_bytes(state, coded)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_member(path: Path) -> State:
    """Read a file that ``write_member`` wrote.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """
    tensors, layout = read_content(path, MEMBER, CODED_MEMBER)
    with reading(path):
        return split_tensors(tensors, layout)


def dequantised(state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
    """Return a state dict of plain tensors."""
    return {n: v if isinstance(v, Tensor) else v.dequantised() for n, v in state.items()}


def join_tensors(state: State, coded: bool = False) -> tuple[dict[str, Tensor], list]:
    """Join the values of a state into few tensors; return these and the layout.

    ``coded``: integers by Huffman codes.

    Raises:
        UserError: NaN or infinite values.
    """
    check_state(state)
    parts: Parts = {}
    layout = [[name, *append_value(value, parts, coded)] for name, value in state.items()]
    return concatenate(parts), layout


def append_value(value: Tensor | Stored, parts: Parts, coded: bool = False) -> list:
    """Append a value to ``parts``; return [shape, type or bits, shape of the scale or None]."""
    if isinstance(value, Sinusoids):
        return [list(value.shape), "sinusoids", None]
    if isinstance(value, Coded):
        return _append_coded(value, parts, coded)
    if isinstance(value, Quantised):
        ints = value.ints.flatten().cpu()
        one = huffman.encode(ints) if coded else pack(ints, value.bits)
        parts.setdefault("huffman" if coded else "integers", []).append(one)
        half = has_groups(value.scale.shape)
        scale = value.scale.flatten()
        parts.setdefault(_scales(value.scale.shape), []).append(
            scale.half() if half else scale.float()
        )
        return [list(value.ints.shape), value.bits, list(value.scale.shape)]
    kind = str(value.dtype).removeprefix("torch.")
    parts.setdefault(kind, []).append(value.detach().flatten().cpu())
    return [list(value.shape), kind, None]


def _append_coded(table: Coded, parts: Parts, coded: bool) -> list:
    codes, books = table.codes.cpu(), table.books.flatten().half().cpu()
    if coded:
        some = [*(part.contiguous() for part in codes.unbind(1)), books]
        parts.setdefault("huffman", []).extend(
            huffman.encode_bytes(one.view(torch.uint8)) for one in some
        )
    else:
        parts.setdefault("codes", []).append(codes.flatten())
        parts.setdefault("books", []).append(books)
    if table.kept is None or table.rest is None:
        return [list(table.codes.shape), "codes", list(table.books.shape)]
    shape, sizes = [len(table.kept), table.codes.shape[1]], list(table.books.shape)
    parts.setdefault("masks", []).append(pack(table.kept.to(torch.int8), 1))
    if isinstance(table.rest, Tensor):
        parts.setdefault("books", []).append(table.rest.half().cpu())
        return [shape, "rows", sizes]
    (_, *more), kind, inner = _append_coded(table.rest, parts, coded)
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
        ints = self._integers(count, kind)
        return Quantised(ints.view(shape), self.scale(scale_shape or []), kind)

    def _integers(self, count: int, bits: int) -> Tensor:
        """Return the integers of the next weight."""
        if "huffman" not in self.tensors:
            return unpack(self("integers", packed_bytes(count, bits)), bits, count)
        return self._decoded(huffman.decode, count)

    def _decoded(self, decode: Callable[[Tensor, int], tuple[Tensor, int]], count: int) -> Tensor:
        """Return the next ``count`` values of Huffman codes."""
        found, used = decode(self.tensors["huffman"][self.positions["huffman"] :], count)
        self.positions["huffman"] += used
        return found

    def _coded(self, shape: list[int], sizes: list[int], kind: str) -> Coded:
        """Return the next table, of which ``_append_coded`` returned the arguments."""
        tokens, parts, *more = shape
        if kind == "codes":
            return Coded(*self._codes(tokens, parts, sizes))
        mask = self("masks", packed_bytes(tokens, 1))
        kept = unpack(mask, 1, tokens, signed=False).bool()
        count = int(kept.sum())
        codes, books = self._codes(count, parts, sizes[:3])
        if kind == "rows":
            return Coded(codes, books, kept, self("books", sizes[0] * sizes[2]).float())
        inner = self._coded([tokens - count, *more], sizes[3:], kind.removeprefix(_MIXED))
        return Coded(codes, books, kept, inner)

    def _codes(self, rows: int, parts: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the next codes (rows, parts) and codebooks of the shape ``sizes``."""
        count = math.prod(sizes)
        if "huffman" not in self.tensors:
            codes = self("codes", rows * parts).view(rows, parts)
            return codes, self("books", count).float().view(sizes)
        columns = [self._decoded(huffman.decode_bytes, rows) for _ in range(parts)]
        books = self._decoded(huffman.decode_bytes, 2 * count).view(torch.float16)
        return torch.stack(columns, 1), books.float().view(sizes)

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


def read_content(path: Path, *kinds: str) -> tuple[dict[str, Tensor], Any]:
    """Read tensors and layout of ``file_content`` of one of ``kinds``, and compare their digests.

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
    if not isinstance(header, dict) or header.get("kind") not in kinds:
        found = header.get("kind") if isinstance(header, dict) else "something else"
        found = " ".join(str(found).split())[:80]
        raise UserError(f"{path} holds {found}, not {kinds[0]} of espnet_ext; give another file")
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
