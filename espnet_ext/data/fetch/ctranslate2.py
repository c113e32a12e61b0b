"""Reader of the weights of a CTranslate2 model (model.bin).

The format, little-endian: uint32 version, string name of the specification, uint32 revision,
uint32 count; for each variable its name (string), uint8 rank, uint32 per dimension, uint8 type,
uint32 bytes, data; then uint32 count of aliases and as many pairs of strings. A string is a uint16
length, which counts a closing zero, and the bytes.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from espnet_ext.errors import UserError

# bfloat16 (5) is no type of numpy: its bits are the upper half of a float32.
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2", 5: "<u2"}
_BFLOAT16 = 5
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Weights:
    """Contents of a model.bin."""

    specification: str  # WhisperSpec
    revision: int
    variables: dict[str, np.ndarray]  # by name, aliases included; bfloat16 as float32


def read_weights(data: bytes | memoryview, name: str) -> Weights:
    """Read the contents of a model.bin.

    Args:
        data: the bytes of the file; the arrays are views of them.
        name: of the file, for messages.

    Raises:
        UserError: cut short, not of this format, or damaged.
    """
    reader = _Reader(memoryview(data), name)
    version = reader.number("I")
    if not 2 <= version <= 6:
        raise UserError(f"{name}: no CTranslate2 model of version 2 to 6 (it says {version})")
    specification, revision = reader.string(), reader.number("I")
    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        key = reader.string()
        if key in variables:
            raise UserError(f"{name}: damaged: holds {key!r} twice")
        variables[key] = reader.array(key)
    for _ in range(reader.number("I")):
        alias, key = reader.string(), reader.string()
        if key not in variables:
            raise UserError(
                f"{name}: damaged: {alias!r} is an alias of {key!r}, which is not in it"
            )
        variables[alias] = variables[key]
    reader.end()
    return Weights(specification, revision, variables)


class _Reader:
    """Reads values from bytes in turn, but not beyond their end."""

    def __init__(self, data: memoryview, name: str):
        self.data = data
        self.name = name
        self.position = 0

    def read(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.data):
            raise UserError(f"{self.name}: cut short or damaged at byte {self.position}")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.read(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        raw = bytes(self.read(self.number("H")))
        if not raw.endswith(b"\0") or not raw[:-1].isascii():
            raise UserError(f"{self.name}: damaged: no name before byte {self.position}")
        return raw[:-1].decode("ascii")

    def array(self, key: str) -> np.ndarray:
        rank = self.number("B")
        if rank > _MOST_DIMENSIONS:
            raise UserError(f"{self.name}: damaged: {key!r} has {rank} dimensions")
        shape = [self.number("I") for _ in range(rank)]
        kind, size = self.number("B"), self.number("I")
        if kind not in _TYPES:
            raise UserError(f"{self.name}: {key!r} has the unknown type {kind}")
        wanted = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        if size != wanted:
            raise UserError(f"{self.name}: damaged: {key!r} has {size} bytes, its shape {wanted}")
        array = np.frombuffer(self.read(size), _TYPES[kind]).reshape(shape)
        if kind == _BFLOAT16:
            array = (array.astype("<u4") << 16).view("<f4")
        return array

    def end(self) -> None:
        if self.position != len(self.data):
            left = len(self.data) - self.position
            raise UserError(f"{self.name}: damaged: {left} bytes after its end")
