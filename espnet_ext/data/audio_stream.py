"""Audio in pieces: from a file of any length, or from standard input."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from espnet_ext.data.audio import check_samples
from espnet_ext.errors import UserError

STDIN = "-"


def pieces(source: str, rate: int, size: int) -> Iterator[np.ndarray]:
    """Yield samples (n,), float32 in [-1, 1]; n is ``size``, of the last piece less.

    Args:
        source: an audio file, or ``-`` for standard input: mono 16-bit PCM, little-endian,
            raw or as WAV.
        rate: samples per second that the audio must have.
        size: samples of a piece.

    Raises:
        UserError: no such file, undecodable, not mono, another rate, or NaN or infinite samples.
    """
    found = _stdin(sys.stdin.buffer, rate, size) if source == STDIN else _file(source, rate, size)
    done = 0
    for piece in found:
        if not np.isfinite(piece).all():
            where = done + int(np.flatnonzero(~np.isfinite(piece))[0])
            raise UserError(f"{source}: NaN or infinite sample at {where / rate:.3f} s")
        # A piece may be loud throughout.
        check_samples(piece, f"{source} at {done / rate:.3f} s", lost=1.0)
        done += len(piece)
        yield piece


def _file(path: str, rate: int, size: int) -> Iterator[np.ndarray]:
    if not Path(path).is_file():
        raise UserError(f"no audio file {path}; '-' is standard input")
    try:
        with soundfile.SoundFile(path) as stream:
            _check(path, stream.samplerate, stream.channels, rate)
            yield from stream.blocks(size, dtype="float32")
    except (RuntimeError, OSError):
        raise UserError(f"{path}: cannot decode this audio file") from None


def _check(source: str, found: int, channels: int, rate: int) -> None:
    if found != rate:
        raise UserError(f"{source}: {found} Hz, the model needs {rate} Hz")
    if channels != 1:
        raise UserError(f"{source}: {channels} channels, expected 1")


def _stdin(stream: BinaryIO, rate: int, size: int) -> Iterator[np.ndarray]:
    head, left = _read(stream, 4), None
    for magic, name in _CONTAINERS.items():
        if head.startswith(magic):
            raise UserError(f"standard input: {name} is not read from a pipe; give 16-bit PCM, WAV")
    if head == b"RIFF":
        head, left = b"", _skip_wav_header(stream, rate)
    while left is None or left > 0:
        wanted = 2 * size if left is None else min(2 * size, left)
        data = head + _read(stream, wanted - len(head))
        head = b""
        left = None if left is None else left - len(data)
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
        if len(samples):
            yield samples.astype(np.float32) / 32768
        if len(data) < wanted:
            if left:
                raise UserError("standard input: the WAV file is cut short")
            return


def _read(stream: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end; a pipe returns what is there."""
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(min(size, _MOST))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _skip_wav_header(stream: BinaryIO, rate: int) -> int | None:
    """Read up to the samples of a WAV stream whose first four bytes are read.

    Returns:
        Bytes of samples, which other chunks may follow; None if a writer to a pipe left them open.
    """
    _read(stream, 8)
    checked = False
    while len(head := _read(stream, 8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if not checked:
                raise UserError("standard input: a WAV header without a format")
            return None if length in (0, 0xFFFFFFFF) else length
        if length > _MOST:
            raise UserError(f"standard input: a chunk of {length} bytes before the samples")
        body = _read(stream, length + length % 2)
        if name == b"fmt ":
            kind, channels = (int.from_bytes(body[i : i + 2], "little") for i in (0, 2))
            bits = int.from_bytes(body[14:16], "little")
            if kind not in (1, 0xFFFE) or bits != 16:
                raise UserError("standard input: WAV must hold 16-bit PCM")
            _check("standard input", int.from_bytes(body[4:8], "little"), channels, rate)
            checked = True
    raise UserError("standard input: a WAV header without samples")


_MOST = 1 << 20  # bytes that are read at once
# First bytes of what is neither WAV nor samples.
_CONTAINERS = {
    b"RIFX": "big-endian WAV",
    b"RF64": "RF64",
    b"riff": "W64",
    b"fLaC": "FLAC",
    b".snd": "AU",
    b"NIST": "SPHERE",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b"ID3": "MP3",
    b"\x1aE\xdf\xa3": "Matroska",
}


def with_last(pieces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield every piece and whether it is the last."""
    before: np.ndarray | None = None
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    yield (np.zeros(0, np.float32) if before is None else before), True
