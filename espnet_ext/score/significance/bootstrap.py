"""Intervals of an error rate, and of the difference of two, by the bootstrap.

Bisani, Ney: "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004. Utterances (or whole speakers) are drawn with replacement, and the pooled error
rate is computed for each draw; scipy draws. Above 100,000 utterances, blocks of them are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
MOST_UNITS = 100_000  # utterances or speakers that are drawn one by one
BLOCKS = 10_000  # drawn instead where there are more
_BATCH_ITEMS = 2_000_000  # bounds the memory of one batch of draws to some tens of MB


@dataclass(frozen=True)
class Difference:
    """Second system minus first, on the same references; negative if the second is better."""

    value: float
    interval: tuple[float, float]
    p: float  # two-sided


def bootstrap_interval(
    errors: np.ndarray,
    lengths: np.ndarray,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of ``errors.sum() / lengths.sum()``.

    Args:
        errors: errors per utterance, shape (utterances,).
        lengths: reference tokens per utterance, shape (utterances,), all above 0.
        groups: speaker of each utterance; whole speakers are then drawn, which is the honest
            interval where speakers are few: their utterances are not independent.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high), or None for one utterance (speaker): there is nothing to draw from.
    """
    result = _draw(errors, lengths, groups, resamples, seed)
    return None if result is None else _interval(result)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    lengths: np.ndarray,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference | None:
    """Compare two systems' errors on the same utterances.

    Args:
        first: errors of the system compared with (the baseline), shape (utterances,).
        second: errors of the system in question, shape (utterances,).
        lengths: reference tokens per utterance, shape (utterances,).
        groups: speaker of each utterance, to draw whole speakers.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        The difference of the rates, its 95 % interval and its p. None for one utterance
        (speaker).
    """
    result = _draw(second - first, lengths, groups, resamples, seed)
    if result is None:
        return None
    return Difference(
        value=float((second - first).sum() / lengths.sum()),
        interval=_interval(result),
        p=two_sided_p(result.bootstrap_distribution),
    )


def block_size(units: int) -> int:
    """How many utterances (or speakers) in a row are drawn together: 1, but for huge sets.

    With a million utterances 10,000 draws would need minutes. Neighbours in the order of ids are
    often of one speaker or recording, so blocks are at least as honest as single utterances.
    """
    return 1 if units <= MOST_UNITS else -(-units // BLOCKS)


def two_sided_p(drawn: np.ndarray) -> float:
    """Return the p of a difference of 0 from drawn differences (draws,).

    It is twice the share of draws with the rarer sign: at least 2 / (draws + 1), at most 1.
    """
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def percentile_interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of drawn scores (draws,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _draw(
    errors: np.ndarray,
    lengths: np.ndarray,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> Any:
    from scipy import stats  # half a second to import: only where numbers are computed

    if groups is not None:
        names, index = np.unique(np.asarray(groups), return_inverse=True)
        errors = np.bincount(index, weights=errors, minlength=len(names))
        lengths = np.bincount(index, weights=lengths, minlength=len(names))
    if len(errors) < 2:
        return None
    if (size := block_size(len(errors))) > 1:
        starts = np.arange(0, len(errors), size)
        errors, lengths = np.add.reduceat(errors, starts), np.add.reduceat(lengths, starts)
    return stats.bootstrap(
        (errors, lengths),
        lambda e, n, axis: e.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_ITEMS // len(errors)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def _interval(result: Any) -> tuple[float, float]:
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
