"""Trainings that failed: their systems decide nothing, so they are no evidence of a claim."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from espnet_ext.results.comparison import Comparison
from espnet_ext.results.grids import POOLED, Grid, GridSystem
from espnet_ext.results.schema import Score
from espnet_ext.results.store import Results

MOST_OF_ONE_CLASS = 0.95  # of its decisions, that a system may name one class in
MOST_WER = 0.9
LEAST_BLEU = 1.0


def failures_of_rows(record: Grid, *systems: str | None) -> list[str]:
    """One line for each of these systems of a grid whose training failed."""
    rows = (record.row(name) for name in systems if name is not None)
    found = (_failure(record, row) for row in rows if row is not None)
    return [line for line in found if line is not None]


def failures_of_run(
    results: Results, run: str, than: str, score: Score, pairs: Sequence[Comparison]
) -> list[str]:
    """One line for a run, and one for what it was compared with, if its training failed.

    Args:
        results: committed results.
        run: its name, <recipe>/<run>.
        than: name of the other, without the recipe; its scores are those of the comparison, or
            the published ones where there was none.
        score: of the run; those of the other are on the same set.
        pairs: the comparisons of that score with the other.
    """
    other = results.runs.get(f"{run.partition('/')[0]}/{than.replace('/', '_')}")
    after = _values(score.metrics)
    published = [_values(s.metrics) for s in (other.scores if other else ()) if s.set == score.set]
    compared = {pair.metric: score.other_value(pair) for pair in pairs}
    scores = [(run, after), *((than, values) for values in ([compared] if compared else published))]
    found = (_no_text(name, values) for name, values in scores)
    return [line for line in found if line is not None]


def _values(scores: Mapping[str, Any]) -> dict[str, float]:
    return {key: found.value for key, found in scores.items()}


def _failure(record: Grid, row: GridSystem) -> str | None:
    """Why the training of a system failed; None if it did not."""
    share = _share_of_one_class(row)
    if share is not None and share > MOST_OF_ONE_CLASS:
        return f"{row.system} names one class in {share:.1%} of decisions"
    values = _values(row.scores)
    pooled = values.get(POOLED)
    # Another class in each seed: no class has most of the decisions, and yet nothing was learnt.
    if pooled is not None and record.majority is not None and pooled <= record.majority:
        return (
            f"{row.system} has a pooled F1 of {pooled:.4f}, no more than the "
            f"{record.majority:.4f} of always naming the commonest class"
        )
    return _no_text(row.system, values)


def _share_of_one_class(row: GridSystem) -> float | None:
    """The share of decisions that name the commonest class: of each training, if it is known."""
    if row.one_class:
        return mean(row.one_class.values())
    if not row.confusion:
        return None
    named = np.asarray(row.confusion).sum(axis=0)
    return float(named.max() / named.sum())


def _no_text(name: str, values: Mapping[str, float]) -> str | None:
    """Why a recogniser or a translator outputs nothing of use; None if it does."""
    if values.get("wer", 0.0) > MOST_WER:
        return f"{name} has a WER of {values['wer']:.0%}"
    if values.get("bleu", LEAST_BLEU) < LEAST_BLEU:
        return f"{name} has a BLEU of {values['bleu']:.1f}"
    return None
