"""Trainings that failed: their systems decide nothing, so they are no evidence of a claim."""

import numpy as np

from espnet_ext.results.grids import Grid, GridSystem
from espnet_ext.results.schema import Score
from espnet_ext.results.store import Results

MOST_OF_ONE_CLASS = 0.95  # of its decisions, that a system may name one class in
MOST_WER = 0.9


def failures_of_rows(record: Grid, *systems: str | None) -> list[str]:
    """One line for each of these systems of a grid whose training failed."""
    rows = (record.row(name) for name in systems if name is not None)
    found = (_failure(row) for row in rows if row is not None)
    return [line for line in found if line is not None]


def failures_of_run(results: Results, run: str, than: str, score: Score) -> list[str]:
    """One line for a run, and for what it is compared with if published, if training failed.

    Args:
        results: committed results.
        run: its name, <recipe>/<run>.
        than: name of the other, without the recipe.
        score: of the run; those of the other are on the same set.
    """
    other = results.runs.get(f"{run.partition('/')[0]}/{than.replace('/', '_')}")
    scores = [(run, score), *((than, s) for s in (other.scores if other else ()))]
    found = (
        _too_many_errors(name, one.metrics["wer"].value)
        for name, one in scores
        if one.set == score.set and "wer" in one.metrics
    )
    return [line for line in found if line is not None]


def _failure(row: GridSystem) -> str | None:
    """Why the training of a system failed; None if it did not."""
    if row.confusion:
        named = np.asarray(row.confusion).sum(axis=0)
        share = named.max() / named.sum()
        if share > MOST_OF_ONE_CLASS:
            return f"{row.system} names one class in {share:.1%} of decisions"
    return _too_many_errors(row.system, row.scores["wer"].value) if "wer" in row.scores else None


def _too_many_errors(name: str, wer: float) -> str | None:
    return f"{name} has a WER of {wer:.0%}" if wer > MOST_WER else None
