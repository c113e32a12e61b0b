"""Long speech in pieces that a model has positions for, cut where it is quietest."""

import numpy as np

_PAUSE = 0.6  # seconds of a pause that ends a segment
_SPEECH = 1.0  # seconds that a segment has at least before its pause
_QUIET = 1e-3  # energy of a pause, relative to the loudest moment: -30 dB
_SILENCE = 1e-3  # peak, -60 dBFS, below which there is no speech: a decoder would invent some
_WINDOW = 0.2  # seconds whose energy counts as that of a moment
_STEP = 0.02  # seconds between moments


def cut_at_pauses(wave: np.ndarray, most: int, rate: int) -> list[np.ndarray]:
    """Return the pieces of a wave, in their order; together they are the wave.

    Each is cut in the second half of what it may be, at the quietest moment, the latest of several;
    the last one has at least a second.

    Args:
        wave: (samples,).
        most: samples of a piece at most, two seconds or more.
        rate: samples per second.
    """
    pieces = []
    while len(wave) > most:
        first, last = most // 2, min(most, len(wave) - rate)
        place = first + _quietest(wave[first:last], rate)
        pieces.append(wave[:place])
        wave = wave[place:]
    return [*pieces, wave]


def is_silent(wave: np.ndarray) -> bool:
    """True if a wave (samples,) has no speech; an empty one has none."""
    return float(np.abs(wave).max(initial=0.0)) < _SILENCE


def ends_in_pause(wave: np.ndarray, rate: int) -> bool:
    """True if a wave (samples,) has at least a second of something, then a pause."""
    pause = round(_PAUSE * rate)
    if len(wave) < pause + _SPEECH * rate:
        return False
    window = round(_WINDOW * rate)
    whole = np.square(wave[len(wave) % window :], dtype=np.float64).reshape(-1, window).mean(1)
    last = whole[-round(_PAUSE / _WINDOW) :]
    return bool(last.max() <= _QUIET * whole.max())


def _quietest(wave: np.ndarray, rate: int) -> int:
    """The middle of the window with the least energy, the last one of those."""
    window, step = round(_WINDOW * rate), round(_STEP * rate)
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    starts = np.arange(0, max(1, len(wave) - window), step)
    energy = sums[np.minimum(starts + window, len(wave))] - sums[starts]
    # Rounding of the sums must not decide among silent moments.
    quiet = np.flatnonzero(energy <= energy.min() + 1e-9 * sums[-1])
    return int(min(starts[quiet[-1]] + window // 2, len(wave)))
