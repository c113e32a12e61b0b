"""Data packed by ProPack, unpacked: plain bytes, copies, copies of themselves, several blocks."""

import random

import pytest

from espnet_ext.data.corpora.rnc import unpack
from espnet_ext.errors import UserError
from tests.fixtures.rnc import pack, packed


def expected(blocks):
    out = bytearray()
    for rounds in blocks:
        for k, (content, distance, length) in enumerate(rounds):
            out += content
            for _ in range(length if k < len(rounds) - 1 else 0):
                out.append(out[-distance])
    return bytes(out)


@pytest.mark.parametrize("seed", range(20))
def test_random_rounds_give_their_bytes(seed):
    rng = random.Random(seed)
    blocks, size = [], 0
    for _ in range(rng.randint(1, 3)):
        rounds = []
        for _ in range(rng.randint(1, 40)):
            content = rng.randbytes(rng.choice((0, 1, 2, 3, 200)) if size else 5)
            size += len(content)
            length = rng.choice((2, 3, 4, 5, 300))
            rounds.append((content, rng.randint(1, size), length))
            size += length
        size -= rounds[-1][2]
        blocks.append(rounds)
    assert unpack(pack(blocks)) == expected(blocks)


def test_plain_bytes():
    content = random.Random(1).randbytes(70000)
    assert unpack(packed(content)) == content


def test_what_is_damaged_is_one_line():
    whole = packed(bytes(range(256)) * 4)
    for cut in (4, 17, 30, len(whole) // 2):
        with pytest.raises(UserError, match=r"damaged|not packed"):
            unpack(whole[:cut])
    with pytest.raises(UserError, match="not packed by ProPack's method 1"):
        unpack(b"RNC\x02" + whole[4:])
    with pytest.raises(UserError, match="expected 1025"):
        unpack(whole[:4] + (1025).to_bytes(4, "big") + whole[8:])
    blocks = bytearray(packed(b"text"))
    blocks[18:] = bytes([0b11111100, 0b11111111]) * 40  # symbols of more bits than a number has
    with pytest.raises(UserError, match="damaged"):
        unpack(bytes(blocks))
    with pytest.raises(UserError, match="damaged"):  # a copy from before the beginning
        unpack(pack([[(b"ab", 9, 4), (b"c", 1, 2)]]))


@pytest.mark.parametrize("seed", range(60))
def test_changed_bytes_never_end_in_another_error(seed):
    rng = random.Random(seed)
    whole = bytearray(pack([[(rng.randbytes(5), rng.randint(1, 5), 4) for _ in range(30)]]))
    whole[rng.randrange(18, len(whole))] ^= 1 << rng.randrange(8)
    try:
        unpack(bytes(whole))
    except UserError as error:
        assert "damaged" in str(error)
