"""Audio files: decoded, and written as 16 kHz mono FLAC, the same bytes every time."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from espnet_ext.errors import UserError

SHORTEST = 0.025  # seconds; a window of log-mel


def decode(data: bytes, name: str, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Decode the bytes of a mono audio file.

    Args:
        data: a file in any format that libsndfile reads.
        name: its name in an error.
        sample_rate: Hz that it must have; None: any.

    Returns:
        Samples (frames,), float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        UserError: undecodable, empty, not mono, or of another sample rate.
    """
    if not data:
        raise UserError(f"{name}: empty audio file")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, OSError):
        raise UserError(f"{name}: cannot decode this audio file ({len(data)} bytes)") from None
    if len(samples) == 0:
        raise UserError(f"{name}: audio file without samples")
    if samples.shape[1] != 1:
        raise UserError(f"{name}: {samples.shape[1]} channels, expected 1")
    if sample_rate is not None and rate != sample_rate:
        raise UserError(f"{name}: {rate} Hz, expected {sample_rate} Hz")
    return samples[:, 0], rate


def read_stretch(
    path: Path,
    name: str,
    start: float = 0.0,
    end: float | None = None,
    channel: int | None = None,
    raw: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a stretch of an audio file: one of its channels, or the mean of all.

    Args:
        path: the file.
        name: of the stretch, in an error.
        start: seconds.
        end: seconds; None: the end of the file.
        channel: from 0; None: the mean of all.
        raw: options of ``soundfile.SoundFile`` for a file without a header.

    Returns:
        Samples (frames,), float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        UserError: undecodable, without samples, or without that channel.
    """
    try:
        samples, rate = _read_part(path, start, end, raw or {})
    except (RuntimeError, OSError, ValueError):
        if _is_shortened(path):
            raise UserError(
                f"{name}: {path} is compressed (SPHERE with shorten), which libsndfile does not "
                "read; expand all such files with LDC's sph2pipe -f sph FILE NEW, same names"
            ) from None
        raise UserError(f"{name}: cannot decode {path}") from None
    if len(samples) == 0:
        raise UserError(f"{name}: {path}: audio without samples from {start} s on")
    if channel is None:
        return samples.mean(axis=1), rate
    if channel >= samples.shape[1]:
        raise UserError(f"{name}: {path} has {samples.shape[1]} channel, no channel {channel + 1}")
    return samples[:, channel], rate


def _read_part(
    path: Path, start: float, end: float | None, raw: Mapping[str, Any]
) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(path, **raw) as stream:
        rate = stream.samplerate
        if stream.seekable():
            first = min(round(start * rate), stream.frames)
            last = stream.frames if end is None else min(round(end * rate), stream.frames)
            stream.seek(first)
            return stream.read(max(0, last - first), dtype="float32", always_2d=True), rate
        # GSM 06.10 without a header: 33 bytes for 160 samples.
        samples = stream.read(path.stat().st_size // 33 * 160, dtype="float32", always_2d=True)
    return samples[round(start * rate) : None if end is None else round(end * rate)], rate


def _is_shortened(path: Path) -> bool:
    """Return whether a file is NIST SPHERE with compressed samples."""
    try:
        with path.open("rb") as stream:
            header = stream.read(1024)
    except OSError:
        return False
    return header.startswith(b"NIST_1A") and b"shorten" in header.partition(b"end_head")[0]


def has_no_samples(path: Path) -> bool:
    """Return whether a file is audio with a header and no samples."""
    try:
        with soundfile.SoundFile(path) as stream:
            return bool(stream.frames == 0)
    except (RuntimeError, OSError, TypeError):
        return False  # decoding it names the fault


def read_wave(path: str | Path, name: str, sample_rate: int) -> np.ndarray:
    """Read a mono audio file of the utterance ``name``: samples (frames,), float32 in [-1, 1].

    Raises:
        UserError: missing, too short for features, or what ``decode`` refuses.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot read {path}: {error.strerror}") from None
    samples = decode(data, f"{name}: {path}", sample_rate)[0]
    if len(samples) < SHORTEST * sample_rate:
        raise UserError(f"{name}: {path}: {len(samples)} samples, less than {SHORTEST} s")
    return samples


def write_flac(path: str | Path, samples: np.ndarray, rate: int, target_rate: int = 16000) -> float:
    """Resample to ``target_rate`` Hz and write 16-bit mono FLAC; return its seconds."""
    if rate != target_rate:
        samples = soxr.resample(samples, rate, target_rate, quality="HQ")
    integers = np.round(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)
    # Encoded in memory, so that a full disk is an OSError, not a message of the codec.
    stream = io.BytesIO()
    soundfile.write(stream, integers, target_rate, format="FLAC", subtype="PCM_16")
    Path(path).write_bytes(stream.getvalue())
    return len(integers) / target_rate


def flac_seconds(path: str | Path, sample_rate: int = 16000) -> float | None:
    """Return the duration of a whole mono file of that rate; None for any other file."""
    try:
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except (RuntimeError, OSError):
        return None
    if rate != sample_rate or samples.shape[1] != 1 or len(samples) == 0:
        return None
    return len(samples) / rate
