"""Audio files: decoded, and written as 16 kHz mono FLAC, the same bytes every time."""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from espnet_ext.errors import UserError

SHORTEST = 0.025  # seconds; a window of log-mel
OVERSHOOT = 0.5  # seconds that an utterance may end after its recording, as in Kaldi
_BLOCK = 1 << 20  # frames that are decoded at once


def decode(data: bytes, name: str, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Decode the bytes of a mono audio file.

    Args:
        data: a file in any format that libsndfile reads.
        name: its name in an error.
        sample_rate: Hz that it must have; None: any.

    Returns:
        Samples (frames,), float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        UserError: undecodable, empty, cut short, not mono, of another sample rate, or samples that
            ``check_samples`` refuses.
    """
    if not data:
        raise UserError(f"{name}: empty audio file")
    try:
        samples, rate = _read(io.BytesIO(data), len(data), name)
    except (RuntimeError, OSError):
        raise UserError(f"{name}: cannot decode this audio file ({len(data)} bytes)") from None
    if len(samples) == 0:
        raise UserError(f"{name}: audio file without samples")
    if samples.shape[1] != 1:
        raise UserError(f"{name}: {samples.shape[1]} channels, expected 1")
    if sample_rate is not None and rate != sample_rate:
        raise UserError(f"{name}: {rate} Hz, expected {sample_rate} Hz")
    check_samples(samples, name)
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
        end: seconds; None: the end of the file. Up to OVERSHOOT after that is allowed, and cut.
        channel: from 0; None: the mean of all.
        raw: options of ``soundfile.SoundFile`` for a file without a header.

    Returns:
        Samples (frames,), float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        UserError: undecodable, cut short, without samples there, without that channel, channels
            that cancel, or samples that ``check_samples`` refuses.
    """
    where = f"{name}: {path}"
    samples, rate = read_samples(path, name, start, end, raw)
    if len(samples) == 0:
        raise UserError(f"{where}: audio without samples from {start} s on")
    if end is not None and start + len(samples) / rate < end - OVERSHOOT:
        found = start + len(samples) / rate
        raise UserError(f"{where}: the utterance ends at {end} s, the audio at {found:.2f} s")
    if channel is not None and channel >= samples.shape[1]:
        raise UserError(f"{where} has {samples.shape[1]} channel, no channel {channel + 1}")
    if channel is not None:
        return samples[:, channel], rate
    mean = samples.mean(axis=1)
    if samples.shape[1] > 1 and _rms(mean) < 0.03 * _rms(samples):
        raise UserError(f"{where}: the channels cancel each other; use one of them")
    return mean, rate


def read_samples(
    path: Path,
    name: str,
    start: float = 0.0,
    end: float | None = None,
    raw: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a stretch of an audio file: samples (frames, channels), float32, and the rate in Hz.

    Arguments are those of ``read_stretch``.

    Raises:
        UserError: undecodable, cut short, or samples that ``check_samples`` refuses.
    """
    where = f"{name}: {path}"
    if not path.is_file():
        raise UserError(f"{name}: no audio file {path}")
    try:
        samples, rate = _read(path, path.stat().st_size, where, start, end, raw)
    except (RuntimeError, OSError, ValueError):
        if _is_shortened(path):
            raise UserError(
                f"{name}: {path} is compressed (SPHERE with shorten), which libsndfile does not "
                "read; expand all such files with LDC's sph2pipe -f sph FILE NEW, same names"
            ) from None
        raise UserError(f"{name}: cannot decode {path}") from None
    check_samples(samples, where)
    return samples, rate


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples (frames,) at another rate in Hz."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="HQ")


def filled_up(wave: np.ndarray, rate: int) -> np.ndarray:
    """A wave (samples,), float32, padded with silence up to a window of log-mel."""
    missing = max(0, round(SHORTEST * rate) - len(wave))
    return np.pad(np.asarray(wave, np.float32), (0, missing))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def check_samples(samples: np.ndarray, name: str, lost: float = 0.005) -> None:
    """Check samples (frames,) or (frames, channels), float32, some of which may be beyond 1.

    Codecs and mastering overshoot full scale a little; that is clipped later, which may cost the
    share ``lost`` of their energy. A sine that is amplified by 1.2 would lose 0.011.

    Raises:
        UserError: NaN or infinite samples, or much beyond 1, or one beyond 2: integers, or
            amplified samples, which clipping would turn into square waves.
    """
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: NaN or infinite samples")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak <= 1:
        return
    beyond = np.maximum(np.abs(samples, dtype=np.float64) - 1, 0)
    energy = np.square(samples, dtype=np.float64).sum()
    if peak > 2 or np.square(beyond).sum() > lost * energy:
        raise UserError(f"{name}: samples up to {peak:.4g}, expected -1 to 1; divide them")


def _read(
    file: Path | BinaryIO,
    size: int,
    name: str,
    start: float = 0.0,
    end: float | None = None,
    raw: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a stretch of a file of ``size`` bytes: samples (frames, channels), rate in Hz."""
    with soundfile.SoundFile(file, **(raw or {})) as stream:
        rate = stream.samplerate
        if not stream.seekable():
            # GSM 06.10 without a header: 33 bytes for 160 samples.
            samples = stream.read(size // 33 * 160, dtype="float32", always_2d=True)
            last = None if end is None else round(end * rate)
            return samples[round(start * rate) : last], rate
        missing = _missing(stream, file, size)
        first = min(round(start * rate), stream.frames)
        last = stream.frames if end is None else min(round(end * rate), stream.frames)
        stream.seek(first)
        samples = _read_blocks(stream, max(0, last - first))
        if not missing and stream.format == "MP3" and len(samples) < last - first - rate // 10:
            missing = _has_length(file)
        if missing:
            raise UserError(f"{name}: cut short, its header promises more than is there")
        return samples, rate


def _read_blocks(stream: soundfile.SoundFile, count: int) -> np.ndarray:
    """Read at most ``count`` frames; memory grows with what is there, not with what is claimed."""
    parts = [np.zeros((0, stream.channels), np.float32)]
    while count > 0:
        part = stream.read(min(count, _BLOCK), dtype="float32", always_2d=True)
        if not len(part):
            break
        parts.append(part)
        count -= len(part)
    return np.concatenate(parts)


def _missing(stream: soundfile.SoundFile, file: Path | BinaryIO, size: int) -> bool:
    """True if the header of a file promises more than its ``size`` bytes hold.

    libsndfile reads what is there and notes it in its log.
    """
    if "Last page lacks an end-of-stream bit" in stream.extra_info:
        return True
    for promised, there in _SIZES.findall(stream.extra_info):
        # A writer to a pipe leaves 0 or the largest number.
        if int(there) + 64 < int(promised) < 0x7FFFFFF0:
            return True
    if stream.format == "NIST":
        header = _head(file, 1024).decode("latin-1")
        fields = dict(re.findall(r"(?m)^(\w+) -\w+ (\S+)", header))
        values = [fields.get(key, "1") for key in ("sample_count", "channel_count")]
        values.append(fields.get("sample_n_bytes", "2"))
        return all(v.isdecimal() for v in values) and math.prod(map(int, values)) + 1024 > size + 64
    return False


# libsndfile's log of WAV, AIFF, W64, RF64 and AU.
_SIZES = re.compile(r"(?m)^ *(?:data|SSND|riff|Riff size|Data Size) *: (\d+) \(should be (\d+)\)")


def _has_length(file: Path | BinaryIO) -> bool:
    """True if an MP3 file says how many frames it has; else its length is only an estimate."""
    head = _head(file, 4096)
    return b"Xing" in head or b"Info" in head


def _head(file: Path | BinaryIO, size: int) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(size)
    file.seek(0)
    return file.read(size)


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


def seconds_of(path: Path, name: str) -> float:
    """Return the duration of an audio file by its header.

    Raises:
        UserError: empty, or not audio.
    """
    if not path.stat().st_size:
        raise UserError(f"{name}: {path}: empty audio file")
    try:
        return float(soundfile.info(path).duration)
    except (RuntimeError, OSError):
        raise UserError(f"{name}: cannot decode {path}") from None


def read_wave(path: str | Path, name: str, sample_rate: int) -> np.ndarray:
    """Read a mono audio file of the utterance ``name``: samples (frames,), float32 in [-1, 1].

    Raises:
        UserError: missing, too short for features, or what ``decode`` refuses.
    """
    try:
        if not Path(path).is_file():  # nor a pipe or a device, which would hang
            raise UserError(f"{name}: no audio file {path}")
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot read {path}: {error.strerror}") from None
    samples = decode(data, f"{name}: {path}", sample_rate)[0]
    if len(samples) < SHORTEST * sample_rate:
        raise UserError(f"{name}: {path}: {len(samples)} samples, less than {SHORTEST} s")
    return samples


def write_flac(path: str | Path, samples: np.ndarray, rate: int, target_rate: int = 16000) -> float:
    """Resample to ``target_rate`` Hz and write 16-bit mono FLAC; return its seconds."""
    samples = resampled(samples, rate, target_rate)
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
