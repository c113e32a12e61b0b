"""Evidence of a claim: committed results that it names, and what they say about two systems."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Tag

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.claims.base import Compared, Effects, Evidence, gain_text
from espnet_ext.results.claims.failures import failures_of_rows, failures_of_run
from espnet_ext.results.comparison import Comparison, significant
from espnet_ext.results.grids import Grid, GridSystem, compare_units, in_order
from espnet_ext.results.metrics import find_metric
from espnet_ext.results.schema import Score, as_json
from espnet_ext.results.store import Results
from espnet_ext.score.significance.folds import mean_interval, sign_flip_p
from espnet_ext.validation import Items, Text

# --- grids


class OfGrid(Evidence):
    """A system of results/<dataset>_<task>/grids/<name>.json."""

    grid: Text
    system: Text

    def failures(self, results: Results) -> list[str]:
        return failures_of_rows(self.record(results), self.system)

    def numbers(self, results: Results, system: str | None = None) -> Mapping[str, Any]:
        """The row of a system."""
        return as_json(find_row(self, results, system or self.system))


def find_row(evidence: Evidence, results: Results, system: str) -> GridSystem:
    """Return the row of a system of the grid that evidence names.

    Raises:
        UserError: the grid has no such system.
    """
    record: Grid = evidence.record(results)
    found = record.row(system)
    if found is None:
        known = [row.system for row in record.systems]
        raise UserError(f"grid {evidence.result} has no system {nearest(system, known)}")
    return found


class OfSystems(Evidence):
    """Several systems of a grid of classifiers.

    ``trivial`` names a system of a grid, on the same units: one of these must be better than that.
    """

    grid: Text
    trivial: OfGrid | None = None

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The systems."""

    def doubt_of_all(self, results: Results) -> str:
        if self.trivial is None:
            return ""
        names = self.names()
        for name in names:
            pair = against_trivial(self, name, self.trivial, results).comparison
            # One of several may be the better one by chance.
            if pair.verdict(tests=len(names)) == "better":
                return ""
        least = find_row(self.trivial, results, self.trivial.system).scores["weighted_f1"].value
        return f"; none is better than {self.trivial.system} of {self.trivial.grid} ({least:.3f})"


def trivial_row(trivial: OfGrid, results: Results) -> GridSystem:
    """The row of a trivial system; UserError: its grid is not published, or lacks it."""
    if not trivial.is_published(results):
        raise UserError(f"trivial names grid {trivial.grid}, which is not published")
    return find_row(trivial, results, trivial.system)


def against_trivial(evidence: Evidence, name: str, trivial: OfGrid, results: Results) -> Compared:
    """Compare a system of the grid that evidence names with a trivial one, unit by unit.

    Raises:
        UserError: the trivial system is not there, or was scored on other units; or these are no
            classifiers.
    """
    rows = [find_row(evidence, results, name), trivial_row(trivial, results)]
    for one in (evidence, trivial):
        if one.record(results).classes is None:
            raise UserError(f"trivial is of classifiers, which grid {one.result} has none of")
    found = [row.scores["weighted_f1"] for row in rows]
    title = f"{trivial.system} of {trivial.grid}"
    if set(found[0].by_unit or ()) != set(found[1].by_unit or ()):
        raise UserError(f"{title} was scored on other units than {name}")
    pair = compare_units(title, *map(in_order, rows))
    return Compared(found[0].value, found[1].value, pair, "weighted F1")


class GridPair(OfGrid, OfSystems):
    """A system of a grid against another.

    ``light`` names a third: where the other is no better than that, being near it says nothing.
    """

    than: Text
    metric: Text | None = None
    light: Text | None = None
    effect: Effects | None = None

    def names(self) -> Sequence[str]:
        return self.system, self.than

    def failures(self, results: Results) -> list[str]:
        return failures_of_rows(self.record(results), self.system, self.than, self.light)

    @property
    def winner(self) -> str:
        """How the system is named in a verdict."""
        return self.system

    def compared(self, results: Results, share: float = 1.0) -> Compared:
        """Compare the system with the other, or with a share of what that has right.

        Classifiers are compared by unit, with the share of each; others as the grid's file names
        pairs.

        Raises:
            UserError: no such system or metric, or the grid did not compare them.
        """
        record: Grid = self.record(results)
        if record.classes is not None:
            after, before = (in_order(find_row(self, results, n)) for n in (self.system, self.than))
            unit = f"weighted F1, {len(after)} {record.unit}s"
            comparison = compare_units(self.than, after, share * before)
            return Compared(float(after.mean()), float((share * before).mean()), comparison, unit)
        row = find_row(self, results, self.system)
        metric = find_metric(self.metric or record.metrics[0], record.metrics)
        pair = row.compared(metric.key, self.than)
        if pair is None:
            known = [found.baseline for found in row.comparisons]
            raise UserError(
                f"{self.system} was not compared with {nearest(self.than, known)}; the grid's "
                "file must name it under than"
            )
        by_seed = row.scores[metric.key].by_seed or {}
        seeds = pair.by_seed or {}
        of = float(np.mean([by_seed[seed] for seed in seeds]))
        unit = f"{metric.name}, {record.part}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        return Compared(of, of - pair.difference, pair, unit).at_share(share)


class GridBest(OfGrid, OfSystems):
    """A system of a grid among others."""

    among: Items[Text]
    metric: Text | None = None

    def names(self) -> Sequence[str]:
        return self.system, *self.among

    def failures(self, results: Results) -> list[str]:
        return failures_of_rows(self.record(results), self.system, *self.among)

    def pairs(self) -> list[GridPair]:
        """The system against each of the others."""
        same = {"grid": self.grid, "system": self.system, "metric": self.metric}
        return [GridPair(than=other, **same) for other in self.among]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trend:
    """A part of a curve: 1 or -1 where it differs from 0 significantly, else 0; its interval."""

    text: str
    direction: int
    interval: tuple[float, float] | None


class GridCurve(OfSystems):
    """Systems of a grid in order."""

    systems: Items[Text]

    def names(self) -> Sequence[str]:
        return self.systems

    def failures(self, results: Results) -> list[str]:
        return failures_of_rows(self.record(results), *self.systems)

    def trend(self, results: Results, degree: int) -> Trend:
        """Test the straight (1) or quadratic (2) part of the curve over equal steps.

        Raises:
            UserError: another degree, or too few systems for it.
        """
        if degree not in (1, 2) or len(self.systems) <= degree:
            raise UserError(
                "a trend has degree 1 or 2 and more systems than that, "
                f"not {degree} and {len(self.systems)}"
            )
        curves = np.stack([in_order(find_row(self, results, name)) for name in self.systems])
        steps = np.arange(len(curves)) - (len(curves) - 1) / 2
        contrast = steps if degree == 1 else steps**2 - (steps**2).mean()
        parts = contrast @ curves / (contrast @ contrast)  # (units,)
        p, coefficient = sign_flip_p(parts), float(parts.mean())
        means = zip(self.systems, curves.mean(axis=1), strict=True)
        text = ", ".join(f"{name} {value:.3f}" for name, value in means)
        text += f"; {'slope a step' if degree == 1 else 'bend'} {coefficient:+.4f} "
        interval = mean_interval(parts)
        direction = int(np.sign(coefficient)) * significant(p)
        gain = None if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        return Trend(text + gain_text(gain, p), direction, interval)


# --- runs and times


class OfRun(Evidence):
    """A run, results/<dataset>_<task>/<run>.json."""

    run: Text
    set: Text | None = None
    method: Text | None = None
    metric: Text | None = None

    def numbers(self, results: Results, system: str | None = None) -> Mapping[str, Any] | None:
        """A run, of this recipe if the name tells none."""
        name = system or self.run
        path = name if "/" in name else f"{self.run.partition('/')[0]}/{name}"
        return as_json(results.runs[path]) if path in results.runs else None


class RunPair(OfRun):
    """A run against its baseline."""

    than: Text
    effect: Effects | None = None

    @property
    def winner(self) -> str:
        """How the run is named in a verdict."""
        return self.run

    def is_published(self, results: Results) -> bool:
        """False too where the baseline is what is missing: the run was compared with none."""
        if not super().is_published(results):
            return False
        return self.missing is None or bool(self._pairs(results))

    def failures(self, results: Results) -> list[str]:
        """Those of the run, and of what it was compared with."""
        score, pairs = self.score(results), self._pairs(results)
        return failures_of_run(results, self.run, self.than, score, pairs)

    def score(self, results: Results) -> Score:
        """The score that set and method name.

        Raises:
            UserError: they do not name one.
        """
        scores = results.runs[self.run].scores
        chosen = [
            score
            for score in scores
            if self.set in (None, score.set) and self.method in (None, score.method)
        ]
        if len(chosen) != 1:
            known = ", ".join(f"{score.set} {score.method}" for score in scores)
            raise UserError(f"set and method must name one score of {self.run}: {known}")
        return chosen[0]

    def _pairs(self, results: Results) -> list[Comparison]:
        """The comparisons that stage 7 made with ``than``, of every metric."""
        than = {self.than, self.than.rpartition("/")[2]}
        pairs = self.score(results).comparisons
        return [pair for pair in pairs if pair.baseline.removesuffix("/merged") in than]

    def compared(self, results: Results, share: float = 1.0) -> Compared:
        """The comparison that stage 7 made, or with a share of what the other has right.

        Raises:
            UserError: no such score or metric, or the run was compared with another.
        """
        score = self.score(results)
        known = list(dict.fromkeys(c.metric for c in score.comparisons)) or list(score.metrics)
        metric = find_metric(self.metric or score.main_metric, known)
        found = next((pair for pair in self._pairs(results) if pair.metric == metric.key), None)
        if found is None:
            raise UserError(
                f"{self.run} was not compared with {self.than}; its config must name that as "
                "recipe: baseline, or under recipe: variants"
            )
        of = score.metrics[metric.key].value
        pair = Compared(of, score.other_value(found), found, f"{metric.name}, {score.set}")
        return pair.at_share(share)


class RunAmong(OfRun):
    """A run and others."""

    among: Items[Text]


class TimePair(Evidence):
    """Two systems of results/benchmarks/stack_time.<model>.json."""

    time: Text
    system: Text
    than: Text

    def records(self, results: Results) -> Mapping[str, Any]:
        """The times of stacks, by model."""
        start = "stack_time."
        found = results.benchmarks.items()
        return {name.removeprefix(start): r for name, r in found if name.startswith(start)}

    def numbers(self, results: Results, system: str | None = None) -> Mapping[str, Any]:
        """The row of a system."""
        rows, name = self.record(results).measured["systems"], system or self.system
        if name not in rows:
            raise UserError(f"time {self.time} has no system {nearest(name, rows)}")
        return rows[name]


def one_of(*kinds: str) -> Discriminator:
    """Tell evidence by the key that names its result: tags "[grid]" and so on."""

    def tag(value: Any) -> str | None:
        found = [kind for kind in kinds if isinstance(value, Mapping) and kind in value]
        return f"[{found[0]}]" if len(found) == 1 else None

    message = f"evidence that names one of {' and '.join(kinds)}"
    return Discriminator(tag, custom_error_type="expected", custom_error_message=message)


GridOrRun = Annotated[GridPair, Tag("[grid]")] | Annotated[RunPair, Tag("[run]")]
Pair = Annotated[GridOrRun, one_of("grid", "run")]
AnyPair = Annotated[GridOrRun | Annotated[TimePair, Tag("[time]")], one_of("grid", "run", "time")]
Single = Annotated[
    Annotated[OfGrid, Tag("[grid]")] | Annotated[OfRun, Tag("[run]")], one_of("grid", "run")
]
