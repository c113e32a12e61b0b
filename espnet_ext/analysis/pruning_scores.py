"""Scores of a pruned model: by the classes that a probe names, or the words of a recogniser.

A judge turns the decisions on a set into numbers by utterance, of which any selection, as one that
is resampled, has a value at once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.stacks import least_value
from espnet_ext.score.classification import metrics, weighted_f1
from espnet_ext.score.wer import align_words

WER = "wer"


class Judge(Protocol):
    """Scores decisions."""

    metric: str
    references: list[str]

    def counted(self, decisions: Sequence[str]) -> np.ndarray:
        """Numbers by utterance (utterances, ...) of decisions, in the order of the set."""
        ...

    def value(self, counts: np.ndarray, chosen: np.ndarray) -> float:
        """The metric on the ``chosen`` utterances, indices (n,)."""
        ...

    def record(self) -> dict[str, Any]:
        """The entries of a pruning record that depend on the references alone."""
        ...


class ClassJudge:
    """Of a probe's classes.

    Args:
        references: the class of each utterance.
        metric: ``accuracy`` or ``weighted_f1``.
    """

    def __init__(self, references: Sequence[str], metric: str):
        self.references, self.metric = list(references), metric
        self.classes: list[str] = []

    def use_classes(self, classes: Sequence[str]) -> None:
        """Learn the classes of a probe.

        Raises:
            UserError: the probes differ in their classes, or the set has one that they lack.
        """
        if self.classes and self.classes != list(classes):
            raise UserError(
                "the probes have different classes; give probes that differ in seed only"
            )
        self.classes = list(classes)
        for label in sorted(set(self.references) - set(classes)):
            raise UserError(f"the set has the class {label}, which the probe was not trained on")

    def counted(self, decisions: Sequence[str]) -> np.ndarray:
        """Places (utterances, 2) of the true and the named class; one more means no class."""
        place = {name: index for index, name in enumerate(self.classes)}
        named = [place.get(label, len(place)) for label in decisions]
        return np.array([[place[label] for label in self.references], named]).T

    def value(self, counts: np.ndarray, chosen: np.ndarray) -> float:
        """Accuracy, or weighted F1."""
        meant, named = counts[chosen].T
        if self.metric == "accuracy":
            return float((meant == named).mean())
        size = len(self.classes) + 1
        cells = np.bincount(meant * size + named, minlength=size * size)
        return float(weighted_f1(cells.reshape(size, size)))

    def record(self) -> dict[str, Any]:
        """Classes, and the scores of trivial answers."""
        share = Counter(self.references).most_common(1)[0][1] / len(self.references)
        always = metrics(self.references, self.references, self.classes)["majority"]["weighted_f1"]
        return {
            "classes": self.classes,
            "chance": 1 / len(self.classes),
            "majority": share if self.metric == "accuracy" else always,
        }


class WordJudge:
    """Of a recogniser's texts, by word error rate as stage 7 counts it.

    Args:
        references: the text of each utterance.

    Raises:
        UserError: there is no word in them.
    """

    metric = WER

    def __init__(self, references: Sequence[str]):
        self.references = [normalise_text(text) for text in references]
        if not any(self.references):
            raise UserError("no word in the texts of the set")

    def counted(self, decisions: Sequence[str]) -> np.ndarray:
        """Errors and words (utterances, 2)."""
        errors = align_words(self.references, [normalise_text(t) for t in decisions]).errors
        return np.stack([errors.totals, errors.lengths], axis=1)

    def value(self, counts: np.ndarray, chosen: np.ndarray) -> float:
        """The word error rate, a fraction."""
        errors, words = counts[chosen].sum(0)
        return float(errors / max(words, 1))

    def record(self) -> dict[str, Any]:
        """A recogniser has no chance level."""
        return {"classes": [], "chance": None, "majority": None}


def is_removable(judge: Judge, value: float, full: float) -> bool:
    """True if a value leaves enough of that of the whole stack; see ``least_value``."""
    return METRICS[judge.metric].direction * (value - least_value(judge.metric, full)) >= 0
