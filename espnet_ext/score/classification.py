"""Scores of utterance classification: weighted F1 and what stands beside it, by scikit-learn.

Intervals and the paired test are the bootstrap of ``score.significance`` for a score that is no
ratio of sums: what is drawn anew is the confusion matrix. Drawing n utterances with replacement
is drawing the counts of its cells from the multinomial distribution with their shares.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_ext.errors import UserError, nearest
from espnet_ext.score.pairs import read_table
from espnet_ext.score.significance.bootstrap import CONFIDENCE, RESAMPLES, SEED


@dataclass(frozen=True)
class Decisions:
    """Classes named and meant, by utterance or by speaker; all lists in one order."""

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    speakers: list[str]
    classes: list[str]
    baseline: list[str] | None = None  # what the run that is compared with named


def read_decisions(
    reference: str | os.PathLike,
    hypothesis: str | os.PathLike,
    utt2spk: str | os.PathLike,
    classes: Sequence[str],
    baseline: str | os.PathLike | None = None,
) -> Decisions:
    """Read what one set is scored from.

    Raises:
        UserError: a file or an utterance is missing, too many or double, or a class is none of
            ``classes``.
    """
    table = read_table(reference)
    if not table:
        raise UserError(f"{reference}: no utterance in it; make it again (stage 1)")
    ids = sorted(table)
    speakers = read_table(utt2spk)
    for name in ids:
        if not speakers.get(name):
            raise UserError(f"{utt2spk}: no speaker for utterance {name} of {reference}")
    _check_classes(reference, table, classes)

    def named(path: str | os.PathLike) -> list[str]:
        found = read_table(path)
        way_out = "decode that set again (stage 6)"
        for name in ids:
            if name not in found:
                raise UserError(f"{path}: no class for utterance {name} of {reference}; {way_out}")
        for name in found:
            if name not in table:
                raise UserError(f"{path}: utterance {name} is not in {reference}; {way_out}")
        _check_classes(path, found, classes)
        return [found[name] for name in ids]

    return Decisions(
        ids=ids,
        references=[table[name] for name in ids],
        hypotheses=named(hypothesis),
        speakers=[speakers[name] for name in ids],
        classes=list(classes),
        baseline=None if baseline is None else named(baseline),
    )


def _check_classes(
    path: str | os.PathLike, table: Mapping[str, str], classes: Sequence[str]
) -> None:
    for name, label in table.items():
        if label not in classes:
            raise UserError(f"{path}: {name}: no class {nearest(label, classes)}")


def vote(decisions: Decisions) -> Decisions:
    """Return one decision a speaker, by majority over the speaker's utterances.

    A tie goes to the class that is rarer in the references, then to the first in the alphabet:
    with two classes and an even number of segments the rarer one is that which must not be
    missed.

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

    baseline = None if decisions.baseline is None else voted(decisions.baseline)
    return Decisions(
        names, references, voted(decisions.hypotheses), names, decisions.classes, baseline
    )


def score_decisions(
    decisions: Decisions, set_name: str, method: str, unit: str, baseline_tag: str | None = None
) -> dict[str, Any]:
    """Return the content of a score file (``report.schema.CLASS_SCORE``); rates are fractions."""
    speakers = None if unit == "speaker" else decisions.speakers
    cells = _cells(decisions, [decisions.hypotheses])
    drawn = _draws(cells, len(decisions.classes), 1)
    score = {
        "set": set_name,
        "method": method,
        "unit": unit,
        "decisions": len(decisions.ids),
        "speakers": len(set(decisions.speakers)),
        "classes": decisions.classes,
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
        **metrics(decisions.references, decisions.hypotheses, decisions.classes),
        "interval": None if drawn is None else _interval(drawn),
        "interval_by_speaker": None,
        "baseline": None,
    }
    if speakers is not None:
        by_speaker = _draws(cells, len(decisions.classes), 1, speakers)
        score["interval_by_speaker"] = None if by_speaker is None else _interval(by_speaker)
    if decisions.baseline is not None:
        score["baseline"] = {"tag": baseline_tag, **_compare(decisions, speakers)}
    return score


def metrics(
    references: Sequence[str], hypotheses: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return weighted F1, unweighted accuracy (mean recall), accuracy, and all by class.

    The means are over the classes that the references have; a class that is never named
    rightly stands with F1 = 0. ``majority`` is what naming the commonest class always would
    score.
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
            "class": commonest,
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
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    meant, named = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * right / np.maximum(meant + named, 1)
    return (f1 * meant).sum(-1) / meant.sum(-1)


def _cells(decisions: Decisions, systems: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of the cell of each decision: reference, then what each system named."""
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


def _compare(decisions: Decisions, speakers: Sequence[str] | None) -> dict[str, Any]:
    """The difference to the baseline on the same draws; positive if this run is better."""
    assert decisions.baseline is not None
    systems = [decisions.baseline, decisions.hypotheses]
    values = [metrics(decisions.references, s, decisions.classes)["weighted_f1"] for s in systems]
    cells = _cells(decisions, systems)
    drawn = _draws(cells, len(decisions.classes), 2)
    result: dict[str, Any] = {"difference": values[1] - values[0], "interval": None, "p": None}
    if drawn is not None:
        difference = drawn[1] - drawn[0]
        tail = min(np.count_nonzero(difference <= 0), np.count_nonzero(difference >= 0))
        result["interval"] = _interval(difference)
        result["p"] = float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)))
    by_speaker = None
    if speakers is not None:
        by_speaker = _draws(cells, len(decisions.classes), 2, speakers)
    result["interval_by_speaker"] = (
        None if by_speaker is None else _interval(by_speaker[1] - by_speaker[0])
    )
    return result


def _interval(drawn: np.ndarray) -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    return [float(q) for q in np.quantile(drawn, [tail, 1 - tail])]
