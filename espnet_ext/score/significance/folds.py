"""Scores over folds and seeds: means, deviations, and a paired test of two systems over folds."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from espnet_ext.score.significance.bootstrap import CONFIDENCE, SEED

# 2^13 = 8,192 ways to flip the signs: up to 13 folds the test goes through all of them.
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class FoldSummary:
    """A score over folds and seeds."""

    mean: float  # of the means over seeds of all folds
    sd_folds: float | None  # of these means; None for one fold
    sd_seeds: float | None  # of the means over folds of each seed; None for one seed


def summarise(scores: Mapping[tuple[str, int], float]) -> FoldSummary:
    """Summarise scores by (fold, seed).

    Raises:
        ValueError: a pair is missing.
    """
    folds, seeds = ({key[i] for key in scores} for i in (0, 1))
    if len(scores) != len(folds) * len(seeds):
        raise ValueError("not every fold has every seed")
    by_fold = mean_by(scores, 0).values()
    by_seed = mean_by(scores, 1).values()
    return FoldSummary(
        mean=mean(by_fold),
        sd_folds=stdev(by_fold) if len(by_fold) > 1 else None,
        sd_seeds=stdev(by_seed) if len(by_seed) > 1 else None,
    )


def mean_by(scores: Mapping[tuple[str, int], float], part: int) -> dict[Any, float]:
    """Return the means of scores by (fold, seed), for each fold (0) or each seed (1)."""
    found: dict[Any, list[float]] = {}
    for key, value in scores.items():
        found.setdefault(key[part], []).append(value)
    return {key: mean(values) for key, values in found.items()}


def sign_flip_p(differences: np.ndarray) -> float | None:
    """Return the two-sided p of a paired permutation test of differences (folds,).

    Seeds are averaged before. If the systems are equal, each fold's difference has either sign
    with the same probability. Folds share training data, so the test is somewhat bold: a p just
    below 0.05 is weak evidence.

    Returns:
        None for fewer than two folds.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def mean_interval(differences: np.ndarray) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean of differences (folds,).

    The bootstrap is too narrow for the five folds that some corpora have.

    Returns:
        None for fewer than two folds.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    middle, half = differences.mean(), stats.sem(differences)
    half *= stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return float(middle - half), float(middle + half)
