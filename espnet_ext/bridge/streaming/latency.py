"""Latency of a stream, measured in memory of constant size."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from espnet_ext.data.features import FRAMES_PER_SECOND, SUBSAMPLING
from espnet_ext.errors import UserError

BIN_WIDTH = 0.01  # of a bin, relative to its lower edge
_SHORTEST, _LONGEST = 1e-6, 1e5  # seconds between which bins are; what is outside is clipped
_SILENCE = -80  # dBFS: dither of one bit of 16 peaks at -90, quiet speech far above
_WINDOW = 0.025  # seconds of a frame's window
_BINS = math.ceil(math.log(_LONGEST / _SHORTEST) / math.log1p(BIN_WIDTH))


class Durations:
    """Histogram of times in seconds: bins of 1 %; count, sum, least and greatest are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.least, self.greatest = math.inf, -math.inf
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.count += 1
        self.total += seconds
        self.least, self.greatest = min(self.least, seconds), max(self.greatest, seconds)
        place = math.log(max(seconds, _SHORTEST) / _SHORTEST) / math.log1p(BIN_WIDTH)
        self._bins[min(int(place), _BINS - 1)] += 1

    def percentile(self, q: float) -> float | None:
        """The percentile, as by numpy, with an error of at most one bin; None without times."""
        if not self.count:
            return None
        place = q / 100 * (self.count - 1)
        low, high = self._ranked(math.floor(place)), self._ranked(math.ceil(place))
        return low + (high - low) * (place - math.floor(place))

    def _ranked(self, rank: int) -> float:
        """The ``rank``-th least time, as the middle of its bin."""
        if rank in (0, self.count - 1):
            return self.least if rank == 0 else self.greatest
        place = int(np.searchsorted(self._bins.cumsum(), rank, side="right"))
        middle = _SHORTEST * (1 + BIN_WIDTH) ** (place + 0.5) if place else self.least
        return min(max(middle, self.least), self.greatest)


class Timing:
    """Processing time of a stream, as if its audio came in real time.

    Attributes:
        audio: seconds of audio.
        peak: largest absolute sample.
        chunks: seconds of processing of each chunk of audio, features included.
        ready: second, from the start of the audio, at which the last chunk was done.
        first_token: that second when the text was first not empty; None before.
        delays: of each token, seconds from the end of its encoder frame until it was certain;
            at the end of the stream all are.
    """

    def __init__(self) -> None:
        self.audio = self.peak = self.ready = 0.0
        self.chunks, self.delays = Durations(), Durations()
        self.first_token: float | None = None

    def hear(self, piece: np.ndarray, rate: int) -> None:
        """Count the samples of a chunk at ``rate`` Hz."""
        self.audio += len(piece) / rate
        self.peak = max(self.peak, float(np.abs(piece).max(initial=0.0)))

    def add(self, spent: float, frames: Iterable[int], text: bool) -> None:
        """Count the processing of the chunk that was heard last.

        Args:
            spent: seconds.
            frames: encoder frames of the tokens that became certain.
            text: there is a text.
        """
        self.chunks.add(spent)
        self.ready = max(self.ready, self.audio) + spent
        if text and self.first_token is None:
            self.first_token = self.ready
        for frame in frames:
            # The last frame may reach beyond the end of the audio.
            end = min((frame + 1) * SUBSAMPLING / FRAMES_PER_SECOND, self.audio)
            self.delays.add(self.ready - end)

    def summary(self) -> dict[str, Any]:
        """Latency figures in milliseconds; the real-time factor of one thread."""

        def milliseconds(seconds: float | None, digits: int) -> float | None:
            return None if seconds is None else round(1000 * seconds, digits)

        return {
            "audio_seconds": round(self.audio, 3),
            "chunks": self.chunks.count,
            "rtf": round(self.chunks.total / self.audio, 5),
            "chunk_ms_p50": milliseconds(self.chunks.percentile(50), 2),
            "chunk_ms_p95": milliseconds(self.chunks.percentile(95), 2),
            "first_token_ms": milliseconds(self.first_token, 1),
            "token_delay_ms_p50": milliseconds(self.delays.percentile(50), 2),
            "token_delay_ms_p95": milliseconds(self.delays.percentile(95), 2),
        }


def doubts(timing: Timing, chunk: float) -> list[str]:
    """Reasons to distrust the text of a finished stream; ``chunk``: its seconds."""
    found = []
    if timing.audio < chunk:
        found.append(f"the stream has {timing.audio:.3f} s, less than a chunk of {chunk:g} s")
    level = 20 * math.log10(timing.peak) if timing.peak else -math.inf
    if level < _SILENCE:
        found.append(
            f"the stream is silence: it peaks at {level:.1f} dBFS, below {_SILENCE} dBFS;"
            " is the microphone on?"
        )
    return found


def refuse_short(timing: Timing) -> None:
    """Raise UserError if a finished stream has no window of features."""
    if timing.audio < _WINDOW:
        raise UserError(f"the stream has {timing.audio:.3f} s, less than a window of 25 ms")
