"""Scores of utterance classification: weighted F1, accuracies and F1 by class, by scikit-learn.

Weighted F1 is no ratio of sums, so the bootstrap draws confusion matrices: drawing n utterances
with replacement is drawing the counts of the matrix's cells from the multinomial distribution
with their shares.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_ext.errors import UserError, nearest
from espnet_ext.score.pairs import read_pairs
from espnet_ext.score.significance.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    percentile_interval,
    two_sided_p,
)


@dataclass(frozen=True)
class Decisions:
    """Named and true classes, by utterance or by speaker; all lists in one order.

    Attributes:
        baselines: classes that the runs that are compared with named, by their names.
    """

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    speakers: list[str]
    classes: list[str]
    baselines: Mapping[str, list[str]] = field(default_factory=dict)


def read_decisions(
    reference: str | os.PathLike,
    hypothesis: str | os.PathLike,
    utt2spk: str | os.PathLike,
    classes: Sequence[str],
    baselines: Mapping[str, str | os.PathLike] | None = None,
) -> Decisions:
    """Read the decisions about one set.

    Raises:
        UserError: a file or an utterance is missing, unknown or duplicate, or a class is none
            of ``classes``.
    """
    pairs = read_pairs(reference, hypothesis, utt2spk, baselines, normalise=str, noun="class")
    assert pairs.speakers is not None
    for path, labels in (
        (reference, pairs.references),
        (hypothesis, pairs.hypotheses),
        *((path, pairs.baselines[name]) for name, path in (baselines or {}).items()),
    ):
        for name, label in zip(pairs.ids, labels, strict=False):
            if label not in classes:
                raise UserError(f"{path}: {name}: no class {nearest(label, classes)}")
    return Decisions(
        pairs.ids,
        pairs.references,
        pairs.hypotheses,
        pairs.speakers,
        list(classes),
        pairs.baselines,
    )


def vote(decisions: Decisions) -> Decisions:
    """Return one decision a speaker, by majority over the speaker's utterances.

    A tie goes to the class that is rarer in the references, then to the first in the alphabet:
    of two classes the rarer one is the one that must not be missed.

    Raises:
        UserError: a speaker has utterances of two classes.
    """
    share = Counter(decisions.references)
    members: dict[str, list[int]] = {}
    for index, speaker in enumerate(decisions.speakers):
        members.setdefault(speaker, []).append(index)

    def majority(labels: Sequence[str]) -> str:
        count = Counter(labels)
        return min(count, key=lambda label: (-count[label], share[label], label))

    names = sorted(members)
    references = []
    for name in names:
        meant = {decisions.references[i] for i in members[name]}
        if len(meant) > 1:
            raise UserError(
                f"speaker {name} has utterances of the classes {', '.join(sorted(meant))}; "
                "a vote needs one class a speaker (recipe: vote)"
            )
        references.append(meant.pop())

    def voted(labels: Sequence[str]) -> list[str]:
        return [majority([labels[i] for i in members[name]]) for name in names]

    baselines = {name: voted(labels) for name, labels in decisions.baselines.items()}
    return Decisions(
        names, references, voted(decisions.hypotheses), names, decisions.classes, baselines
    )


def score_decisions(decisions: Decisions, set_name: str, method: str, unit: str) -> dict[str, Any]:
    """Return the score, as ``results.schema.ClassScore`` has it; rates are fractions.

    Args:
        decisions: of the set.
        set_name: name of the set, for the record.
        method: the decoding method, for the record.
        unit: utterance, or speaker where they vote.
    """
    speakers = None if unit == "speaker" else decisions.speakers
    number = len(set(decisions.speakers))
    found = metrics(decisions.references, decisions.hypotheses, decisions.classes)
    cells = _cells(decisions, [decisions.hypotheses])
    drawn, by_speaker = _both_draws(cells, len(decisions.classes), 1, speakers)
    return {
        "task": "cls",
        "set": set_name,
        "method": method,
        "speakers": number,
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
        "metrics": {
            "weighted_f1": {
                "value": found["weighted_f1"],
                "interval": None if drawn is None else percentile_interval(drawn[0]),
                "by_speaker": None if by_speaker is None else percentile_interval(by_speaker[0]),
            },
            "unweighted_accuracy": {"value": found["unweighted_accuracy"], "interval": None},
            "accuracy": {"value": found["accuracy"], "interval": None},
        },
        "comparisons": [
            {
                "metric": "weighted_f1",
                "baseline": name,
                "speakers": number,
                **_difference(decisions, baseline, speakers),
            }
            for name, baseline in decisions.baselines.items()
        ],
        "unit": unit,
        "decisions": len(decisions.ids),
        "classes": decisions.classes,
        **{key: found[key] for key in ("majority", "per_class", "confusion")},
    }


def metrics(
    references: Sequence[str], hypotheses: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return weighted F1, unweighted accuracy (mean recall), accuracy, and all by class.

    The means are over the classes that the references have; a class that is never named
    correctly has F1 = 0. ``majority`` is the score of always naming the commonest class.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
    from sklearn.metrics import precision_recall_fscore_support as by_class

    labels = list(classes)
    precision, recall, f1, support = by_class(
        references, hypotheses, labels=labels, zero_division=0.0
    )
    present = support > 0
    commonest = labels[int(np.argmax(support))]
    always = [commonest] * len(references)
    options: dict[str, Any] = {"labels": labels, "average": "weighted", "zero_division": 0.0}
    return {
        "weighted_f1": float(f1_score(references, hypotheses, **options)),
        "unweighted_accuracy": float(recall[present].mean()),
        "accuracy": float(accuracy_score(references, hypotheses)),
        "majority": {
            "name": commonest,
            "weighted_f1": float(f1_score(references, always, **options)),
        },
        "per_class": {
            label: {
                "f1": float(f1[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": confusion_matrix(references, hypotheses, labels=labels).tolist(),
    }


def weighted_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the weighted F1 of matrices (..., classes, classes), rows the references."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    meant, named = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * correct / np.maximum(meant + named, 1)
    return (f1 * meant).sum(-1) / meant.sum(-1)


def _cells(decisions: Decisions, systems: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of the cell of each decision: the reference, then the class of each system."""
    index = {label: i for i, label in enumerate(decisions.classes)}
    cells = np.array([index[label] for label in decisions.references])
    for system in systems:
        cells = cells * len(index) + np.array([index[label] for label in system])
    return cells


def _draws(
    cells: np.ndarray, classes: int, systems: int, groups: Sequence[str] | None = None
) -> np.ndarray | None:
    """Weighted F1 of each system on each draw, (systems, draws); None if there is one unit."""
    used, place = np.unique(cells, return_inverse=True)
    rng = np.random.default_rng(SEED)
    if groups is None:
        if len(cells) < 2:
            return None
        drawn = rng.multinomial(len(cells), np.bincount(place) / len(cells), size=RESAMPLES)
    else:
        names, owner = np.unique(np.asarray(groups), return_inverse=True)
        if len(names) < 2:
            return None
        units = np.zeros((len(names), len(used)), dtype=np.int64)
        np.add.at(units, (owner, place), 1)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
        drawn = times @ units
    reference = used // classes**systems
    found = []
    for system in range(systems):
        named = used // classes ** (systems - 1 - system) % classes
        matrix = np.zeros((RESAMPLES, classes * classes))
        for column, cell in enumerate(reference * classes + named):
            matrix[:, cell] += drawn[:, column]
        found.append(weighted_f1(matrix.reshape(-1, classes, classes)))
    return np.stack(found)


def _both_draws(
    cells: np.ndarray, classes: int, systems: int, speakers: Sequence[str] | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weighted F1 of each system, utterances drawn, and speakers drawn where they are known."""
    by_speaker = None if speakers is None else _draws(cells, classes, systems, speakers)
    return _draws(cells, classes, systems), by_speaker


def _difference(
    decisions: Decisions, baseline: list[str], speakers: Sequence[str] | None
) -> dict[str, Any]:
    """The difference to a baseline on the same draws; positive if this run is better."""
    systems = [baseline, decisions.hypotheses]
    before, after = (
        metrics(decisions.references, s, decisions.classes)["weighted_f1"] for s in systems
    )
    drawn, by_speaker = (
        None if found is None else found[1] - found[0]
        for found in _both_draws(_cells(decisions, systems), len(decisions.classes), 2, speakers)
    )
    return {
        "difference": after - before,
        "interval": None if drawn is None else percentile_interval(drawn),
        "p": None if drawn is None else two_sided_p(drawn),
        "by_speaker": None if by_speaker is None else percentile_interval(by_speaker),
    }
