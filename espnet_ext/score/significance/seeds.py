"""Scores of a system trained with several seeds, and paired differences of two systems.

Utterances are drawn with replacement, as in ``significance.bootstrap``, and so are seeds: a
difference that one lucky training made vanishes with it. Two systems are compared seed by seed on
the same draws. Three seeds are few to draw from, so an interval is still somewhat narrow.
"""

from collections.abc import Callable

import numpy as np

from espnet_ext.score.significance.bootstrap import (
    SEED,
    Difference,
    percentile_interval,
    two_sided_p,
)

RESAMPLES = 2000


def mean_score(
    counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, tuple[float, float] | None]:
    """Return the mean over seeds of a metric, and its 95 % interval.

    Args:
        counts: (seeds, utterances, k), of ``score.statistics``.
        score: of sums of counts; of ``score.statistics``.

    Returns:
        The interval is None for one utterance.
    """
    value = float(score(counts.sum(axis=1)).mean())
    if counts.shape[1] < 2:
        return value, None
    return value, percentile_interval(_draw(counts, score))


def difference(
    first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> Difference | None:
    """Compare the counts of two systems, (seeds, utterances, k) each: second minus first.

    Returns:
        None for one utterance.
    """
    if first.shape[1] < 2:
        return None
    drawn = _draw(second, score) - _draw(first, score)
    value = float((score(second.sum(axis=1)) - score(first.sum(axis=1))).mean())
    return Difference(value, percentile_interval(drawn), two_sided_p(drawn))


def _draw(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Means over drawn seeds of the metric of drawn utterances; the same draws at every call."""
    seeds, utterances, _ = counts.shape
    random = np.random.default_rng(SEED)
    times = random.multinomial(utterances, np.full(utterances, 1 / utterances), RESAMPLES)
    chosen = random.integers(seeds, size=(RESAMPLES, seeds))
    sums = np.einsum("ru,suk->rsk", times, counts, optimize=True)
    return np.take_along_axis(score(sums), chosen, axis=1).mean(axis=1)
