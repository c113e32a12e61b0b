"""Metrics as counts that add up over utterances, and a score of their sums."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class Statistics(ABC):
    """A metric; ``metric`` is its key, ``signature`` sacreBLEU's or None."""

    def __init__(self, metric: str, signature: str | None = None):
        self.metric = metric
        self.signature = signature

    @abstractmethod
    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Return the counts of utterances, (utterances, k)."""

    @abstractmethod
    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return the scores (...) of sums of counts (..., k)."""


def statistics_of(metric: str, language: str | None = None) -> Statistics:
    """Return the statistics of wer, cer, bleu or chrf.

    Args:
        metric: the metric.
        language: of translations.

    Raises:
        UserError: sacreBLEU lacks what it needs to cut this language into words.
    """
    if metric in ("wer", "cer"):
        return ErrorRate(metric)
    from espnet_ext.score.translation import metrics  # imports sacreBLEU

    found: Any = metrics(str(language))[metric]
    found.corpus_score([""], [[""]])  # its signature has the number of references after that
    return {"bleu": Bleu, "chrf": Chrf}[metric](found)


class ErrorRate(Statistics):
    """WER or CER as a fraction; counts are errors and length."""

    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Return the errors and the length of each utterance, (utterances, 2)."""
        from espnet_ext.score.wer import align_characters, align_words  # imports jiwer

        align = align_words if self.metric == "wer" else align_characters
        errors = align(references, hypotheses).errors
        return np.stack([errors.totals, errors.lengths], axis=1)

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return errors over length."""
        return sums[..., 0] / sums[..., 1]


class Bleu(Statistics):
    """BLEU from 0 to 100; counts are both lengths, then n-grams that match, and all."""

    def __init__(self, bleu: Any):
        super().__init__("bleu", str(bleu.get_signature()))
        self._bleu = bleu

    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Return the counts of each utterance, (utterances, 2 + 2 * orders)."""
        rows = []
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            found = self._bleu.corpus_score([hypothesis], [[reference]])
            rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
        return np.array(rows)

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return BLEU of each row of sums."""
        orders = self._bleu.max_ngram_order
        values = [
            self._bleu.compute_bleu(
                correct=row[2 : 2 + orders],
                total=row[2 + orders :],
                sys_len=row[0],
                ref_len=row[1],
                smooth_method=self._bleu.smooth_method,
                smooth_value=self._bleu.smooth_value,
                effective_order=self._bleu.effective_order,
                max_ngram_order=orders,
            ).score
            for row in sums.reshape(-1, sums.shape[-1]).tolist()
        ]
        return np.array(values).reshape(sums.shape[:-1])


class Chrf(Statistics):
    """chrF from 0 to 100; counts are n-grams of the hypothesis, the reference, and common ones.

    sacreBLEU publishes only the score, so its formula is repeated here.
    """

    def __init__(self, chrf: Any):
        super().__init__("chrf", str(chrf.get_signature()))
        self._order, self._factor = chrf.char_order, chrf.beta**2

    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Return the counts of each utterance, (utterances, 3 * orders)."""
        from sacrebleu.metrics.helpers import extract_all_char_ngrams

        rows = []
        for texts in zip(hypotheses, references, strict=True):
            row: list[int] = []
            for said, meant in zip(
                *(extract_all_char_ngrams(text, self._order) for text in texts), strict=True
            ):
                # N-grams of an order that the reference is too short for do not count.
                row += [said.total() if meant else 0, meant.total(), (said & meant).total()]
            rows.append(row)
        return np.array(rows)

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return chrF of each row of sums: F of the mean precision and the mean recall."""
        precision, recall, used = (np.zeros(sums.shape[:-1]) for _ in range(3))
        for order in range(self._order):
            said, meant, common = (sums[..., 3 * order + n] for n in range(3))
            counted = (said > 0) & (meant > 0)
            precision += np.where(counted, common / np.maximum(said, 1), 0)
            recall += np.where(counted, common / np.maximum(meant, 1), 0)
            used += counted
        precision, recall = precision / np.maximum(used, 1), recall / np.maximum(used, 1)
        found = (1 + self._factor) * precision * recall
        below = self._factor * precision + recall
        return 100 * np.divide(found, below, out=np.zeros_like(found), where=below > 0)
