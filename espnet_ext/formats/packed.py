"""Files of packed weights: one member of a family, as stage 5 deploys it at 8, 4 or 2 bits.

A file is a safetensors file, so nothing in it is code. Its metadata has one entry, ``espnet_ext``:
JSON with the ``kind`` of the file and the SHA-256 of each tensor. Names and records of hundreds
of small tensors would add 10 % to a small model, so tensors are joined:

    layout     uint8, JSON compressed by zlib: [[name, shape, type, shape of the scale], ...]
    integers   uint8, every quantised weight's integers in b bits each (``methods.packing.pack``),
               each weight from a byte of its own on
    scales     float32, every quantised weight's scales
    float32    all other tensors of that type; other types likewise

in the order of ``layout``, where the type of a quantised weight is its bits and the shape of the
scale is null elsewhere. A file of n weights at b bits and s scales, with m other float32 numbers,
takes n b / 8 + 4 s + 4 m bytes, other types, layout and header, which is at most 1,024 bytes and
less than 10 bytes for each name.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path
from espnet_ext.formats.bits import Quantised, pack, packed_bytes, unpack
from espnet_ext.methods.quantise import BITS

MEMBER = "member 1"  # kind of file, and the version of its format
State = dict[str, Tensor | Quantised]
_TYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


def member_bytes(state: State) -> bytes:
    """The content of a file that holds one member.

    Args:
        state: as ``methods.packing.quantised_state`` gives it.

    Raises:
        UserError: NaN or infinite values.
    """
    tensors, layout = joined(state.items())
    return stored(tensors, layout, MEMBER)


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
    tensors, layout = read_stored(path, MEMBER)
    return guarded(path, lambda: parted(tensors, layout))


def dequantised(state: Mapping[str, Tensor | Quantised]) -> dict[str, Tensor]:
    """A state dict of plain tensors."""
    return {n: v.dequantised() if isinstance(v, Quantised) else v for n, v in state.items()}


def refuse_unusable(state: State) -> None:
    """Raise UserError, with its name, if a value has NaN or infinite entries."""
    for name, value in state.items():
        _refuse(value.scale if isinstance(value, Quantised) else value, name)


def joined(values: Iterable[tuple[str, Tensor | Quantised]]) -> tuple[dict[str, Tensor], list]:
    """Join named values into few tensors; return these and the layout.

    Raises:
        UserError: NaN or infinite values.
    """
    parts: dict[str, list[Tensor]] = {}
    layout = []
    for name, value in values:
        if isinstance(value, Quantised):
            _refuse(value.scale, name)
            layout.append([name, list(value.ints.shape), value.bits, list(value.scale.shape)])
            parts.setdefault("integers", []).append(pack(value.ints.flatten(), value.bits))
            parts.setdefault("scales", []).append(value.scale.flatten().float())
        else:
            _refuse(value, name)
            kind = str(value.dtype).removeprefix("torch.")
            layout.append([name, list(value.shape), kind, None])
            parts.setdefault(kind, []).append(value.detach().flatten().cpu())
    return {kind: torch.cat(some) for kind, some in parts.items()}, layout


def parted(tensors: Mapping[str, Tensor], layout: list) -> State:
    """The named values that ``joined`` joined.

    Raises:
        UserError: NaN or infinite values.
        ValueError, TypeError, KeyError, IndexError, RuntimeError: tensors and layout do not fit.
    """
    take = Taker(tensors)
    state: State = {}
    for name, shape, kind, scales in layout:
        count = math.prod(shape)
        if kind in BITS:
            ints = unpack(take("integers", packed_bytes(count, kind)), kind, count)
            scale = take("scales", math.prod(scales)).view(scales)
            _refuse(scale, name)
            state[name] = Quantised(ints.view(shape), scale, kind)
        else:
            state[name] = take(kind, count).view(shape)
            _refuse(state[name], name)
    take.finish()
    return state


class Taker:
    """Takes joined tensors apart, from their beginnings to their ends."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.places = dict.fromkeys(tensors, 0)

    def __call__(self, kind: str, count: int) -> Tensor:
        """The next ``count`` entries of the tensor ``kind``."""
        start = self.places[kind]
        self.places[kind] = start + count
        if count < 0 or start + count > len(self.tensors[kind]):
            raise ValueError(f"{kind} is too short")
        return self.tensors[kind][start : start + count].clone()

    def finish(self) -> None:
        """Raise ValueError if anything is left."""
        for kind, place in self.places.items():
            if place != len(self.tensors[kind]):
                raise ValueError(f"{kind} is too long")


def stored(tensors: dict[str, Tensor], layout: Any, kind: str) -> bytes:
    """The content of a file with ``tensors`` and a layout (JSON), each with its SHA-256."""
    text = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
    tensors = {"layout": torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)} | (
        tensors
    )
    header = {"kind": kind, "sha256": {name: _digest(t) for name, t in sorted(tensors.items())}}
    return save(tensors, {"espnet_ext": json.dumps(header)})


def read_stored(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Read tensors and layout that ``stored`` made, and compare their digests.

    Raises:
        UserError: no such file, another kind of file, or one that is truncated or was changed.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("espnet_ext", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path} is truncated or damaged ({reason}); get it again") from None
    if not isinstance(header, dict) or header.get("kind") != kind:
        what = header.get("kind") if isinstance(header, dict) else "something else"
        raise UserError(f"{path} holds {what}, not {kind} of espnet_ext; give another file")
    digests = header.get("sha256")
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise UserError(f"{path} was changed after it was written: its tensors; get it again")
    for name, tensor in tensors.items():
        if _digest(tensor) != digests[name]:
            raise UserError(
                f"{path} was changed after it was written: {name} has another SHA-256; get it again"
            )
    layout = tensors.pop("layout", None)
    read = guarded(path, lambda: json.loads(zlib.decompress(bytes(layout.numpy()))))
    return tensors, read


def guarded[T](path: Path, read: Callable[[], T]) -> T:
    """Do ``read``; where a file's parts do not fit each other, say so.

    Raises:
        UserError: they do not.
    """
    try:
        return read()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); get it again") from None


def _digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and content."""
    content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    content.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _refuse(tensor: Tensor, name: str) -> None:
    if str(tensor.dtype).removeprefix("torch.") not in _TYPES:
        raise ValueError(f"{name} has a type that files do not hold: {tensor.dtype}")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinite values; train again or take another epoch")
