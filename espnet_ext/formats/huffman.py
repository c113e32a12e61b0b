"""Integers by Huffman codes: fewer bits than ``bits.pack`` needs where few values are frequent.

Weights rounded with one step for all (``scale: deviation``) are mostly small integers. At a given
squared error, such rounding and a code by frequency need fewer bits than integers of equal length
(entropy-coded scalar quantisation: Gish and Pierce, 1968). The codes are those of DEFLATE (RFC
1951). A code has a whole number of bits, so two integers share one: of -7 to 7 each is half a byte,
7 more than itself, the first in the lower half; a larger one is 15 there, and these follow as bytes
in a stream of their own. That costs about 1 % more than the entropy.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

_RAW = -15  # DEFLATE without header and check sum, which the file has
_LARGEST, _MARK = 7, 15  # integer of half a byte; half a byte of a larger one


def encode(ints: Tensor) -> Tensor:
    """Return the codes of integers (n,) int8 as bytes, uint8."""
    large = (ints > _LARGEST) | (ints < -_LARGEST)
    halves = torch.where(large, _MARK, ints + _LARGEST).to(torch.uint8)
    halves = torch.nn.functional.pad(halves, (0, len(ints) % 2))
    codes = encode_bytes(halves[::2] | halves[1::2] << 4)
    return torch.cat([codes, encode_bytes(ints[large])]) if large.any() else codes


def decode(content: Tensor, count: int) -> tuple[Tensor, int]:
    """Return the integers that ``encode`` coded, and how many bytes they took.

    Args:
        content: (bytes,) uint8, which begin with the codes.
        count: of the integers; no more are decoded than these, whatever the bytes hold.

    Raises:
        ValueError: the codes are not of so many integers.
        zlib.error: they are no codes.
    """
    pairs, used = decode_bytes(content, (count + 1) // 2)
    halves = torch.stack([pairs & 15, pairs >> 4], 1).flatten()[:count]
    ints = halves.to(torch.int8) - _LARGEST
    large = halves == _MARK
    if large.any():
        found, more = decode_bytes(content[used:], int(large.sum()))
        ints[large] = found.view(torch.int8)
        used += more
    return ints, used


def encode_bytes(values: Tensor) -> Tensor:
    """Return the codes of bytes (n,), int8 or uint8; of repeated ones together if that is less."""
    found = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        coder = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, strategy)
        found.append(coder.compress(values.contiguous().numpy().data) + coder.flush())
    return torch.from_numpy(np.frombuffer(min(found, key=len), np.uint8).copy())


def decode_bytes(content: Tensor, count: int) -> tuple[Tensor, int]:
    """Return the bytes (count,) uint8 that ``encode_bytes`` coded; see ``decode``."""
    reader = zlib.decompressobj(_RAW)
    most = count + count // 500 + 1024  # bytes that the codes can take: the rest is copied below
    content = content[:most]
    found = reader.decompress(content.contiguous().numpy().data, count + 1)
    if not reader.eof or len(found) != count:
        raise ValueError(f"Huffman codes of {len(found):,} bytes, not of {count:,}")
    values = torch.from_numpy(np.frombuffer(found, np.uint8).copy())
    return values, len(content) - len(reader.unused_data)
