"""Error rates, BLEU and chrF of a system trained with several seeds, and paired differences.

What is drawn with replacement is utterances, as in ``score.significance``, and the seeds: a
difference that one lucky training made goes with it. Two systems are compared seed by seed on
the same draws. Three seeds are few to draw from, so an interval is still somewhat narrow.
"""

from collections.abc import Callable, Sequence

import numpy as np

from espnet_ext.score.significance.bootstrap import CONFIDENCE, SEED, Difference

RESAMPLES = 2000


class Statistics:
    """What a metric adds up over utterances, and the metric of such sums."""

    def __init__(self, metric: str, language: str | None = None):
        """``metric`` is wer, cer, bleu or chrf; ``language`` is the target's of a translation.

        Raises:
            UserError: sacreBLEU lacks what it needs to cut this language into words.
        """
        from espnet_ext.score.translation import metrics  # imported where numbers are computed
        from espnet_ext.score.wer import align_characters, align_words

        self.metric = metric
        self._sacrebleu = None
        if metric not in ("wer", "cer"):
            self._sacrebleu = metrics(str(language))[metric]
        self._align = align_words if metric == "wer" else align_characters

    @property
    def signature(self) -> str | None:
        """sacreBLEU's, after a ``count``; None of an error rate."""
        return None if self._sacrebleu is None else str(self._sacrebleu.get_signature())

    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Counts (utterances, k): errors and length, or what sacreBLEU adds up for its metric."""
        if self._sacrebleu is None:
            errors = self._align(references, hypotheses).errors
            return np.stack([errors.totals, errors.lengths], axis=1)
        # Not public, but what every metric of sacreBLEU is made of; its bootstrap uses the same.
        return np.array(self._sacrebleu._extract_corpus_statistics(hypotheses, [references]))

    def score(self, sums: np.ndarray) -> np.ndarray:
        """The metric, a fraction, or BLEU or chrF from 0 to 100, of sums of counts (..., k)."""
        if self._sacrebleu is None:
            return sums[..., 0] / sums[..., 1]
        rows = sums.reshape(-1, sums.shape[-1]).tolist()
        values = [self._sacrebleu._compute_score_from_stats(row).score for row in rows]
        return np.array(values).reshape(sums.shape[:-1])


def mean_score(
    counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, tuple[float, float] | None]:
    """Return the mean over seeds of a metric, and its 95 % interval.

    Args:
        counts: (seeds, utterances, k), of ``Statistics.count``.
        score: of ``Statistics``.

    Returns:
        The interval is None for one utterance.
    """
    value = float(score(counts.sum(axis=1)).mean())
    if counts.shape[1] < 2:
        return value, None
    return value, _middle(_draw(counts, score))


def difference(
    first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> Difference | None:
    """Compare the counts of two systems, (seeds, utterances, k) each: the second minus the first.

    Returns:
        The p is two-sided, as in ``significance.paired_difference``. None for one utterance.
    """
    if first.shape[1] < 2:
        return None
    drawn = _draw(second, score) - _draw(first, score)
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    value = float((score(second.sum(axis=1)) - score(first.sum(axis=1))).mean())
    return Difference(value, _middle(drawn), float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))))


def _draw(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Means over drawn seeds of the metric of drawn utterances; the same draws at every call."""
    seeds, utterances, _ = counts.shape
    random = np.random.default_rng(SEED)
    times = random.multinomial(utterances, np.full(utterances, 1 / utterances), RESAMPLES)
    chosen = random.integers(seeds, size=(RESAMPLES, seeds))
    sums = np.einsum("ru,suk->rsk", times, counts, optimize=True)
    return np.take_along_axis(score(sums), chosen, axis=1).mean(axis=1)


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
