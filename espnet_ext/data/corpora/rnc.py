"""Data packed by Rob Northen Computing's ProPack, method 1, as games of the 1990s are.

A header of 18 bytes: "RNC", the method, sizes of four bytes without and with packing, check sums
(not compared: the packages have digests), and at its end the number of blocks. A block has three
Huffman codes (of runs of plain bytes, of distances, of lengths) and a number of rounds: a run of
plain bytes, then a copy of earlier ones.
Codes are read from the lowest bit of 16-bit words; plain bytes are between the words.
"""

import struct

from espnet_ext.errors import UserError

MAGIC = b"RNC\x01"
_HEADER = 18


def unpack(packed: bytes) -> bytes:
    """Return what was packed.

    Raises:
        UserError: it is not packed so, or damaged.
    """
    if len(packed) < _HEADER or packed[:4] != MAGIC:
        raise UserError("not packed by ProPack's method 1")
    size, blocks = struct.unpack_from(">I", packed, 4)[0], packed[_HEADER - 1]
    out, source = bytearray(), _Bits(packed, _HEADER)
    try:
        source.read(2)
        for _ in range(blocks):
            _unpack_block(source, out)
    except (IndexError, KeyError, struct.error):
        raise UserError("packed data is damaged") from None
    if len(out) != size:
        raise UserError(f"packed data is damaged: {len(out)} bytes, expected {size}")
    return bytes(out)


def _unpack_block(source: "_Bits", out: bytearray) -> None:
    runs, distances, lengths = (source.code() for _ in range(3))
    rounds = source.read(16)
    for left in range(rounds, 0, -1):
        run = source.symbol(runs)
        if run:
            out += source.plain(run)
        if left == 1:
            return
        distance = source.symbol(distances) + 1
        length = source.symbol(lengths) + 2
        start = len(out) - distance
        if start < 0:
            raise IndexError
        if distance >= length:
            out += out[start : start + length]
        else:  # it copies what it has just written
            found = out[start:]
            out += (found * (length // distance + 1))[:length]


# For the lowest bits of the stream: a symbol and how many bits its code has.
type _Code = tuple[int, dict[int, tuple[int, int]]]


class _Bits:
    """Words of 16 bits, the last one read at ``place``, and plain bytes between them."""

    def __init__(self, data: bytes, place: int):
        self.data, self.place = data + bytes(4), place  # words are read ahead
        self.bits, self.count = int.from_bytes(data[place : place + 2], "little"), 16

    def read(self, count: int) -> int:
        """Read a number of up to 16 bits; IndexError: of more, which no packer writes."""
        if count > 16:
            raise IndexError
        found = self.bits & ((1 << count) - 1)
        self._skip(count)
        return found

    def plain(self, count: int) -> bytes:
        """Read plain bytes."""
        found = self.data[self.place : self.place + count]
        self.place += count
        if self.place > len(self.data) - 2:
            raise IndexError
        self.count -= 16
        self.bits = self.bits & ((1 << self.count) - 1) | self._word() << self.count
        self.count += 16
        return found

    def code(self) -> _Code:
        """Read a Huffman code: the numbers of bits of its symbols; codes follow in their order."""
        sizes = [self.read(4) for _ in range(self.read(5))]
        longest, table, value = max(sizes, default=0), {}, 0
        for size in range(1, longest + 1):
            for symbol, bits in enumerate(sizes):
                if bits == size:
                    low = int(f"{value:0{size}b}"[::-1], 2)
                    for high in range(0, 1 << longest, 1 << size):
                        table[high | low] = symbol, size
                    value += 1
            value <<= 1
        return (1 << longest) - 1, table

    def symbol(self, code: _Code) -> int:
        """Read a symbol: 0, 1, or a power of two with the bits that follow."""
        mask, table = code
        found, size = table[self.bits & mask]
        self._skip(size)
        if found < 2:
            return found
        return 1 << (found - 1) | self.read(found - 1)

    def _skip(self, count: int) -> None:
        self.bits >>= count
        self.count -= count
        if self.count < 16:
            self.place += 2
            self.bits |= self._word() << self.count
            self.count += 16

    def _word(self) -> int:
        return self.data[self.place] | self.data[self.place + 1] << 8
