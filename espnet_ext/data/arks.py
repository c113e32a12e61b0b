"""Matrices in Kaldi arks, by what a ``feats.scp`` says: a file and an offset, never a command.

``feats.crc32`` next to the arks has the check sum of each matrix, compared whenever one is read.
"""

import functools
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError

CHECK_SUMS = "feats.crc32"
_PLACE = re.compile(r"([^|\0\n]+):(\d+)")


def check_sum(matrix: np.ndarray) -> str:
    """CRC-32 of the numbers of a matrix, as 8 hex digits."""
    return f"{zlib.crc32(np.ascontiguousarray(matrix).tobytes()):08x}"


def _wanted(folder: Path, utterance: str) -> str | None:
    """The check sum of an utterance in the arks of a folder; None: an older version wrote them."""
    path = folder / CHECK_SUMS
    return _read_sums(path, path.stat().st_mtime_ns).get(utterance) if path.is_file() else None


@functools.lru_cache(maxsize=8)
def _read_sums(path: Path, _: int) -> dict[str, str]:
    return read_table(path)


def ark_place(where: str, name: str) -> tuple[Path, int]:
    """Return the ark and the offset of a matrix.

    Kaldi's tools, and kaldiio, run a place that ends or begins with ``|`` as a shell command.

    Args:
        where: ``path:offset``.
        name: of the utterance and its list, in an error.

    Raises:
        UserError: anything but an offset inside an existing regular file.
    """
    found = _PLACE.fullmatch(where)
    if found is None or found[1].strip() in ("", "-"):
        raise UserError(f"{name}: expected 'ark:offset', not '{where[:60]}'")
    path, offset = Path(found[1]), int(found[2])
    if not path.is_file():
        raise UserError(f"{name}: there is no {path}")
    if offset >= path.stat().st_size:
        raise UserError(f"{name}: it is not in {path}")
    return path, offset


class Arks(Mapping[str, np.ndarray]):
    """The matrices of a ``feats.scp``, (frames, width), by utterance; read when they are asked for.

    Indexing raises the UserErrors of ``read_matrix``.
    """

    def __init__(self, scp: Path):
        self.places = read_table(scp)

    def __getitem__(self, utterance: str) -> np.ndarray:
        return read_matrix(self.places[utterance], utterance)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _refuse_larger(path: Path, offset: int) -> None:
    """Raise ValueError if a matrix claims more numbers than its ark has bytes for."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(15)
    if len(head) == 15 and head[:5] in (b"\0BFM ", b"\0BDM "):
        rows, columns = struct.unpack("<xixi", head[5:])
        size = rows * columns * (4 if head[2:3] == b"F" else 8)
        if min(rows, columns) < 0 or size > path.stat().st_size - offset - 15:
            raise ValueError("larger than its file")


def read_matrix(where: str, utterance: str) -> np.ndarray:
    """Read the matrix (frames, width) of an utterance by its place, ``path:offset``.

    Raises:
        UserError: what ``ark_place`` raises, a damaged ark, or values that are not finite.
    """
    import kaldiio

    path, offset = ark_place(where, utterance)
    try:
        _refuse_larger(path, offset)
        matrix = kaldiio.load_mat(f"{path}:{offset}")
    except Exception as error:  # kaldiio raises many types for a damaged ark
        raise UserError(
            f"{utterance}: cannot read {where} ({type(error).__name__}); remove {path.parent} and "
            "run stage 2"
        ) from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise UserError(f"{utterance}: {where} is no matrix of finite numbers; run stage 2 again")
    if _wanted(path.parent, utterance) not in (None, check_sum(matrix)):
        raise UserError(
            f"{utterance}: {where} is damaged, its check sum is not that of {CHECK_SUMS}; remove "
            f"{path.parent} and run stage 2"
        )
    return matrix
