"""What committed results say about two systems, for the rules of ``report.claims``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_ext.errors import UserError, nearest
from espnet_ext.results import text_grids
from espnet_ext.results.pages import classes, tables
from espnet_ext.results.pages.tables import SIGNIFICANT, p_value
from espnet_ext.results.run import run_name
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.score.significance.folds import mean_interval, sign_flip_p

KINDS = ("grid", "run", "similarity", "pruning", "time")
_METRICS = ("wer", "cer", "weighted_f1")


@dataclass(frozen=True)
class Results:
    """Committed results by name: <dataset>_<task>/<name of grid, run, similarity or pruning>.

    Times are named by the model alone.
    """

    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    similarities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prunings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    times: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        results: Sequence[Mapping[str, Any]],
        grids: Sequence[Mapping[str, Any]],
        of_stacks: Sequence[tuple[str, Mapping[str, Any]]] = (),
        times: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Results":
        """Name what ``read_results``, ``read_grids``, ``read_stacks``, ``stack_times`` returned."""
        corpus = "{dataset}_{task}/".format_map

        def records(kind: str) -> dict[str, Mapping[str, Any]]:
            return {corpus(r) + r["name"]: r for found, r in of_stacks if found == kind}

        return cls(
            grids={corpus(record) + record["grid"]: record for record in grids},
            runs={corpus(result) + run_name(result): result for result in results},
            similarities=records("similarity"),
            prunings=records("pruning"),
            times=times or {},
        )

    def by_kind(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """The results of a kind of evidence, a key of ``KINDS``."""
        return {
            "grid": self.grids,
            "run": self.runs,
            "similarity": self.similarities,
            "pruning": self.prunings,
            "time": self.times,
        }[kind]


@dataclass(frozen=True)
class Compared:
    """A system against another; the gain is positive where the system is better."""

    of: float
    than: float
    gain: float
    interval: tuple[float, float] | None
    p: float | None
    direction: int  # 1 or -1 where the gain is told apart from 0, else 0
    unit: str  # what was compared, and over what

    def text(self) -> str:
        """One line for the table."""
        return f"{self.of:.3f} against {self.than:.3f} {self.unit}: {self.of - self.than:+.3f} " + (
            _test_text(self.interval, self.p)
        )


@dataclass(frozen=True)
class Trend:
    """A part of a curve over systems in order: its coefficient for one step."""

    values: Mapping[str, float]
    coefficient: float
    interval: tuple[float, float] | None
    p: float | None
    direction: int
    kind: str

    def text(self) -> str:
        """One line for the table."""
        curve = ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        found = f"{self.kind} {self.coefficient:+.4f} " + _test_text(self.interval, self.p, 4)
        return f"{curve}; {found}"


def _test_text(interval: tuple[float, float] | None, p: float | None, places: int = 3) -> str:
    if interval is None or p is None:
        return "(too few to test)"
    low, high = interval
    return f"(gain {low:+.{places}f} to {high:+.{places}f}, p {p_value(p)})"


@dataclass(frozen=True)
class Evidence:
    """One item of a claim's evidence, looked up in the committed results."""

    source: str  # for messages
    item: Mapping[str, Any]
    results: Results

    @property
    def kind(self) -> str:
        """What is named: a key of ``KINDS``."""
        return next(kind for kind in KINDS if kind in self.item)

    def is_there(self) -> bool:
        """False if what is named has not been published."""
        return self.item[self.kind] in self.results.by_kind(self.kind)

    @property
    def system(self) -> str:
        """The system, or the run, that is compared with another."""
        return str(self.item["run"] if "run" in self.item else self.item["system"])

    def record(self) -> Mapping[str, Any]:
        """The result that is named."""
        return self.results.by_kind(self.kind)[self.item[self.kind]]

    def compared(self, than: str | None = None) -> Compared:
        """Compare the system with ``than``; default: the one that the evidence names."""
        if "run" in self.item:
            return self._compared_runs()
        than = self.item["than"] if than is None else than
        if text_grids.is_text_grid(self.record()):
            return self._compared_texts(than)
        return self._differing(*(self._by_unit(name) for name in (self.item["system"], than)))

    def _differing(self, after: np.ndarray, before: np.ndarray) -> Compared:
        differences = after - before
        p, gain = sign_flip_p(differences), float(differences.mean())
        kind = self.results.grids[self.item["grid"]]["unit"]
        unit = f"weighted F1, {len(differences)} {kind}s"
        interval = mean_interval(differences)
        return Compared(
            float(after.mean()), float(before.mean()), gain, interval, p, _told(gain, p), unit
        )

    def _compared_texts(self, than: str) -> Compared:
        """Compare two systems of a grid whose words were scored; the grid's file names the pair."""
        record, row = self.record(), self._system(self.item["system"])
        metric = self.item.get("metric", record["metrics"][0])
        if metric not in record["metrics"]:
            known = nearest(str(metric), record["metrics"])
            raise UserError(f"{self.source}: unknown metric {known}")
        pairs = row["than"] or {}
        if than not in pairs:
            raise UserError(
                f"{self.source}: {row['system']} was not compared with {nearest(than, pairs)}; "
                "the grid's file must name it under than"
            )
        pair, value = pairs[than][metric], row["scores"][metric]
        of = float(np.mean([value["by_seed"][str(seed)] for seed in pair["seeds"]]))
        sign = text_grids.sign(metric)
        ends = pair["interval"]
        return Compared(
            of=of,
            than=of - pair["difference"],
            gain=sign * pair["difference"],
            interval=None if ends is None else tuple(sorted(sign * end for end in ends)),
            p=pair["p"],
            direction={"better": 1, "worse": -1}.get(text_grids.told(pair, metric), 0),
            unit=f"{text_grids.title(metric)}, {record['part']}, {len(pair['seeds'])} seeds",
        )

    def kept(self, share: float) -> Compared:
        """Compare the system with ``share`` of what the other scores, a share for each unit."""
        after, before = (self._by_unit(self.item[key]) for key in ("system", "than"))
        return self._differing(after, share * before)

    def trend(self, degree: int) -> Trend:
        """Return the straight (1) or bent (2) part of the curve over the named systems."""
        names = self.item["systems"]
        if degree not in (1, 2) or len(names) <= degree:
            raise UserError(
                f"{self.source}: a trend has degree 1 or 2 and more systems than that, "
                f"not {degree} and {len(names)}"
            )
        curves = np.stack([self._by_unit(name) for name in names])  # (systems, units)
        steps = np.arange(len(names)) - (len(names) - 1) / 2
        contrast = steps if degree == 1 else steps**2 - (steps**2).mean()
        parts = contrast @ curves / (contrast @ contrast)
        p, middle = sign_flip_p(parts), float(parts.mean())
        values = dict(zip(names, curves.mean(axis=1).tolist(), strict=True))
        kind = "slope a step" if degree == 1 else "bend"
        return Trend(values, middle, mean_interval(parts), p, _told(middle, p), kind)

    def fields(self, name: str) -> tuple[Any, Any]:
        """The field ``name`` (dotted) of the system and of the one that it is compared with."""
        return self.field(name), self._field(self.item["than"], name)

    def of_others(self, name: str) -> list[Any]:
        """The field ``name`` of each of the runs that stand beside the named one."""
        return [self._field(other, name) for other in self.item["among"]]

    def field(self, name: str) -> Any:
        """The field ``name`` (dotted) of the system; "not measured" where it says so."""
        return self._field(self.system, name)

    def _field(self, system: str, name: str) -> Any:
        if "run" in self.item:
            corpus = self.item["run"].partition("/")[0]
            path = system if "/" in system else f"{corpus}/{system}"
            if path not in self.results.runs:
                return NOT_MEASURED
            value: Any = self.results.runs[path]
        else:
            value = self._system(system)
        for key in name.split("."):
            if value == NOT_MEASURED:
                return value
            if not isinstance(value, Mapping) or key not in value:
                known = list(value) if isinstance(value, Mapping) else []
                raise UserError(f"{self.source}: {system} has no field {nearest(key, known)}")
            value = value[key]
        if value != NOT_MEASURED and not isinstance(value, int | float):
            raise UserError(f"{self.source}: {name} of {system} is no number")
        return value

    def _system(self, name: str) -> Mapping[str, Any]:
        found = self.record()["systems"]
        rows = found if self.kind == "time" else {row["system"]: row for row in found}
        if name not in rows:
            place = f"{self.kind} {self.item[self.kind]}"
            raise UserError(f"{self.source}: {place} has no system {nearest(name, rows)}")
        return rows[name]

    def _by_unit(self, name: str) -> np.ndarray:
        scores = self._system(name)["by_unit"]
        return np.array([scores[unit] for unit in sorted(scores)])

    def _compared_runs(self) -> Compared:
        result = self.results.runs[self.item["run"]]
        score = self._score(result)
        metric = self.item.get("metric", "wer")
        classified = "weighted_f1" in score
        if metric not in _METRICS or (metric == "weighted_f1") != classified:
            known = ("weighted_f1",) if classified else ("wer", "cer")
            raise UserError(f"{self.source}: unknown metric {nearest(str(metric), known)}")
        versus = score["baseline"]
        than = self.item["than"].rpartition("/")[2]
        if versus is None or versus["tag"].removesuffix("/merged") != than:
            raise UserError(
                f"{self.source}: {self.item['run']} was not compared with {self.item['than']}; "
                "its config must name that as recipe: baseline"
            )
        if classified:
            told, key, prefix, sign = classes.verdict(score), "difference", "", 1
            value = score["weighted_f1"]
        else:
            told, key, sign = tables.verdict(score, metric), f"{metric}_difference", -1
            prefix, value = ("" if metric == "wer" else "cer_"), score[metric]["value"]
        few = score["speakers"] is not None and score["speakers"] <= tables.FEW_SPEAKERS
        by = f"{prefix}interval_by_speaker" if few else f"{prefix}interval"
        ends = versus[by] or versus[f"{prefix}interval"]
        interval = (
            None if ends is None else (min(sign * e for e in ends), max(sign * e for e in ends))
        )
        return Compared(
            of=value,
            than=value - versus[key],
            gain=sign * versus[key],
            interval=interval,
            p=versus[f"{prefix}p"],
            direction={"better": 1, "worse": -1}.get(told, 0),
            unit=f"{metric.replace('_', ' ') if classified else metric.upper()}, {score['set']}",
        )

    def _score(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = [
            score
            for score in result["scores"]
            if all(score[key] == self.item[key] for key in ("set", "method") if key in self.item)
        ]
        if len(chosen) != 1:
            known = ", ".join(f"{s['set']} {s['method']}" for s in result["scores"])
            raise UserError(
                f"{self.source}: set and method must name one score of {self.item['run']}: {known}"
            )
        return chosen[0]


def _told(value: float, p: float | None) -> int:
    if p is None or p >= SIGNIFICANT or value == 0:
        return 0
    return 1 if value > 0 else -1
