"""Scores over folds and seeds: means, deviations, and a paired test of two systems over folds."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from espnet_ext.score.significance.bootstrap import CONFIDENCE, SEED

# 2^13 = 8,192 ways to flip the signs: up to 13 folds the test goes through all of them.
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Spread:
    """A score over folds and seeds."""

    mean: float  # of the means over seeds of all folds
    over_folds: float | None  # deviation of these means; None for one fold
    over_seeds: float | None  # deviation of the means over folds of each seed; None for one seed
    folds: int
    seeds: int


def spread(scores: Mapping[tuple[str, int], float]) -> Spread:
    """Summarise scores by (fold, seed).

    Raises:
        ValueError: a pair is missing.
    """
    folds, seeds = (sorted({key[i] for key in scores}, key=str) for i in (0, 1))
    if len(scores) != len(folds) * len(seeds):
        raise ValueError("not every fold has every seed")
    by_fold = [mean(scores[fold, seed] for seed in seeds) for fold in folds]  # type: ignore[index]
    by_seed = [mean(scores[fold, seed] for fold in folds) for seed in seeds]  # type: ignore[index]
    return Spread(
        mean=mean(by_fold),
        over_folds=stdev(by_fold) if len(by_fold) > 1 else None,
        over_seeds=stdev(by_seed) if len(by_seed) > 1 else None,
        folds=len(folds),
        seeds=len(seeds),
    )


def paired_p(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float]
) -> float | None:
    """Return the two-sided p of a paired permutation test over folds, seeds averaged first.

    Under the hypothesis of no difference the sign of each fold's difference is a coin's. Folds
    share training data, so the test is somewhat bold: a p just below 0.05 is weak evidence.

    Returns:
        None for fewer than two folds.
    """
    folds = sorted({fold for fold, _ in first})
    before, after = (
        np.array([mean(v for (f, _), v in scores.items() if f == fold) for fold in folds])
        for scores in (first, second)
    )
    return sign_flip_p(after - before)


def sign_flip_p(differences: np.ndarray) -> float | None:
    """Return the two-sided p of a mean of 0, by flipping signs of differences (folds,).

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

    Not a bootstrap, which is too narrow for the five folds that some corpora have.

    Returns:
        None for fewer than two folds.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    middle, half = differences.mean(), stats.sem(differences)
    half *= stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return float(middle - half), float(middle + half)
