"""Audio from standard input: only the samples of a WAV file, and no file of another kind."""

import argparse
import io
import struct

import numpy as np
import pytest
import soundfile

from espnet_ext.data.audio_stream import pieces
from espnet_ext.errors import UserError

RATE = 16000
SAMPLES = (8000 * np.sin(np.arange(5000) / 7)).astype(np.int16)


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if length is None else length) + body


def wav(*chunks: bytes) -> bytes:
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks))


FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
DATA = chunk(b"data", SAMPLES.tobytes())


@pytest.fixture
def read(monkeypatch):
    def reader(content: bytes) -> np.ndarray:
        monkeypatch.setattr("sys.stdin", argparse.Namespace(buffer=io.BytesIO(content)))
        found = list(pieces("-", RATE, 640))
        assert all(len(piece) == 640 for piece in found[:-1])
        return np.round(np.concatenate(found) * 32768).astype(np.int16)

    return reader


@pytest.mark.parametrize(
    "content",
    [
        wav(FORMAT, DATA),
        wav(FORMAT, chunk(b"LIST", b"x" * 21 + b"\0"), DATA),
        wav(FORMAT, DATA, chunk(b"LIST", b"no samples" * 400)),
        wav(FORMAT, chunk(b"data", SAMPLES.tobytes(), 0xFFFFFFFF)),
        wav(FORMAT, chunk(b"data", SAMPLES.tobytes(), 0)),
        SAMPLES.tobytes(),
    ],
    ids=["plain", "chunk before", "chunk after", "open length", "no length", "raw"],
)
def test_only_samples_are_played(read, content):
    np.testing.assert_array_equal(read(content), SAMPLES)


@pytest.mark.parametrize("kind", ["RF64", "W64", "FLAC", "AU", "NIST", "OGG", "AIFF", "CAF"])
def test_other_files_are_refused_by_name(read, kind):
    stream = io.BytesIO()
    soundfile.write(stream, SAMPLES, RATE, format=kind)
    with pytest.raises(UserError, match=r"standard input: .* is not read from a pipe"):
        read(stream.getvalue())


def test_samples_of_a_file_are_in_range(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES.astype(np.float32), RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"a\.wav at 0\.000 s: samples up to .*divide them"):
        list(pieces(str(path), RATE, 640))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(FORMAT, DATA)[:-100], "cut short"),
        (wav(FORMAT), "without samples"),
        (wav(DATA), "without a format"),
        (wav(FORMAT, chunk(b"junk", b"", 0xFFFFFFF0), DATA), "a chunk of 4294967280 bytes"),
        (b"RIFX" + wav(FORMAT, DATA)[4:], "big-endian"),
    ],
)
def test_damaged_streams_are_refused(read, content, reason):
    with pytest.raises(UserError, match=f"standard input: .*{reason}"):
        read(content)
