"""Grids of trainings, of classifiers or of recognisers and translators: schema and summary."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np

from espnet_ext.config import grid as config
from espnet_ext.data.text import NORMALISATION
from espnet_ext.results.comparison import Comparison, MetricKey
from espnet_ext.results.schema import Measured, Record
from espnet_ext.score.classification import metrics
from espnet_ext.score.significance.folds import mean_by, mean_interval, sign_flip_p, summarise
from espnet_ext.score.significance.seeds import difference, mean_score
from espnet_ext.score.statistics import Statistics, statistics_of
from espnet_ext.validation import Count, Interval, Items, Named, Number, Strict, Text

CLASS_METRICS = ("weighted_f1", "unweighted_accuracy", "accuracy")
POOLED = "pooled_weighted_f1"  # over the decisions of all folds
TEXT_METRICS = {"asr": ("wer", "cer"), "st": ("bleu", "chrf")}  # by task


class GridValue(Strict):
    """A metric of a system, mean over its trainings."""

    value: Number
    interval: Interval | None = None
    over_seeds: Number | None = None  # standard deviation
    over_units: Number | None = None  # standard deviation
    by_seed: dict[str, Number] | None = None
    by_unit: dict[str, Number] | None = None


class GridSystem(Strict):
    """A row of a grid."""

    system: Text
    after: Text | None  # the system whose model it starts from
    seeds: Items[Count]
    parameters: Count
    training_parameters: Count
    stack_parameters: Count | None  # of a pretrained model, without its front end
    macs_per_second: Measured[Number]
    max_difference: Number  # of outputs, deployed against in training
    training_seconds: Number
    epochs: Number
    scores: Named[GridValue]  # by key of METRICS
    comparisons: list[Comparison]
    per_class: dict[str, Number] | None  # F1, pooled over folds, mean over seeds
    confusion: list[list[Count]] | None  # summed over folds and seeds; rows: references
    one_class: dict[str, Number] | None = None  # largest share of a class, mean over folds, by seed

    def compared(self, metric: str, baseline: str) -> Comparison | None:
        """The comparison with another system on a metric, if it was made."""
        found = (c for c in self.comparisons if (c.metric, c.baseline) == (metric, baseline))
        return next(found, None)


class Grid(Record):
    """Systems trained with several seeds, on folds of a corpus or on its fixed sets.

    Recognisers and translators have ``words``; classifiers have ``classes``, and so on.
    """

    name: Text
    split: Text | None  # list of folds; None: the fixed sets
    part: Text
    unit: Literal["utterance", "fold", "speaker"]  # over which an interval and a test are
    units: Count
    folds: Count
    seeds: Items[Count]
    metrics: Items[MetricKey]
    baseline: Text | None  # the system that all are compared with
    known: dict[str, Number] | None = None  # of older grids: scores from elsewhere
    words: Count | None
    target: Text | None  # language of translations
    signatures: dict[str, str] | None  # by metric: sacreBLEU's, or the normalisation of texts
    classes: list[Text] | None
    decisions: Count | None  # of one seed
    majority: Number | None  # weighted F1 of always naming the commonest class, pooled
    systems: Items[GridSystem]

    def row(self, system: str) -> GridSystem | None:
        """The row of a system."""
        return next((row for row in self.systems if row.system == system), None)


# --- summary

type Cell = Mapping[str, Any]  # what ``espnet-ext grid`` leaves of a training, cell.json
type Cells = Mapping[tuple[str, int], Cell]  # by fold and seed


def summary(
    grid: config.Grid,
    cells: Sequence[Cell],
    classes: Sequence[str] | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Summarise a grid, every cell of which is there, as ``Grid`` without its origin.

    Args:
        grid: the grid.
        cells: of all its trainings.
        classes: of classifiers; None of recognisers and translators.
        target: language of translations.
    """
    kind = _texts(grid, cells, target) if classes is None else _decisions(grid, cells, classes)
    return {
        "name": grid.name,
        "split": grid.split,
        "part": grid.part,
        "seeds": list(grid.seeds),
        "baseline": grid.baseline,
        **dict.fromkeys(("words", "target", "signatures", "classes", "decisions", "majority")),
        **kind,
    }


def _by_system(cells: Iterable[Cell]) -> dict[str, dict[tuple[str, int], Cell]]:
    found: dict[str, dict[tuple[str, int], Cell]] = {}
    for cell in cells:
        found.setdefault(cell["system"], {})[cell.get("fold", ""), cell["seed"]] = cell
    return found


def _row(grid: config.Grid, name: str, cells: Sequence[Cell], **scored: Any) -> GridSystem:
    one = cells[0]
    after = {system.name: system.after for system in grid.systems}.get(name)
    return GridSystem(
        system=name,
        after=None if after is None else after.name,
        seeds=sorted({cell["seed"] for cell in cells}),
        parameters=one["parameters"],
        training_parameters=one["training_parameters"],
        stack_parameters=one.get("stack_parameters"),
        macs_per_second=one["macs_per_second"],
        max_difference=max(cell["max_difference"] for cell in cells),
        training_seconds=mean(cell["training_seconds"] for cell in cells),
        epochs=mean(cell["epochs"] for cell in cells),
        **scored,
    )


# --- classifiers: weighted F1 by fold or speaker


def _decisions(grid: config.Grid, cells: Sequence[Cell], classes: Sequence[str]) -> dict[str, Any]:
    folds = len({cell["fold"] for cell in cells})
    shares = {name: _one_class(found) for name, found in _by_system(cells).items()}
    if grid.unit == "speaker":
        cells = _by_speaker(cells, classes)
    by_system = _by_system(cells)
    first = next(iter(by_system.values()))
    one_seed = [cell for (_, seed), cell in first.items() if seed == grid.seeds[0]]
    references = [label for cell in one_seed for label in cell["references"]]
    rows = {n: _class_row(grid, n, found, classes, shares[n]) for n, found in by_system.items()}
    if grid.baseline is not None:
        for name, row in rows.items():
            if name != grid.baseline:
                found = compare_units(grid.baseline, in_order(row), in_order(rows[grid.baseline]))
                rows[name] = row.model_copy(update={"comparisons": [found]})
    return {
        "unit": grid.unit,
        "units": len(one_seed),
        "folds": folds,
        "metrics": ["weighted_f1", POOLED, *CLASS_METRICS[1:]],
        "classes": list(classes),
        "decisions": len(references),
        "majority": metrics(references, references, classes)["majority"]["weighted_f1"],
        "systems": list(rows.values()),
    }


def _by_speaker(cells: Sequence[Cell], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a cell for each speaker instead of each fold: what was decided about the speaker.

    Decisions about one speaker in several folds are pooled.
    """
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for cell in cells:
        decided = zip(cell["speakers"], cell["references"], cell["hypotheses"], strict=True)
        for speaker, reference, hypothesis in decided:
            part = found.setdefault(
                (cell["system"], cell["seed"], speaker),
                {**cell, "fold": speaker, "references": [], "hypotheses": []},
            )
            part["references"].append(reference)
            part["hypotheses"].append(hypothesis)
    for part in found.values():
        part.update(metrics(part["references"], part["hypotheses"], classes))
    return list(found.values())


def _one_class(cells: Cells) -> dict[str, float]:
    """By seed, as ``GridSystem.one_class``: of each training, since each may name another class."""
    shares = {
        key: max(Counter(cell["hypotheses"]).values()) / len(cell["hypotheses"])
        for key, cell in cells.items()
    }
    return {str(seed): share for seed, share in mean_by(shares, 1).items()}


def _class_row(
    grid: config.Grid, name: str, cells: Cells, classes: Sequence[str], shares: dict[str, float]
) -> GridSystem:
    pooled = [_pooled(cells, seed, classes) for seed in sorted({seed for _, seed in cells})]
    values = [found["weighted_f1"] for found in pooled]
    scores = {}
    for metric in CLASS_METRICS:
        found = summarise({key: cell[metric] for key, cell in cells.items()})
        scores[metric] = GridValue(
            value=found.mean, over_units=found.sd_folds, over_seeds=found.sd_seeds
        )
    by_unit = mean_by({key: cell["weighted_f1"] for key, cell in cells.items()}, 0)
    scores["weighted_f1"] = scores["weighted_f1"].model_copy(
        update={"by_unit": by_unit, "interval": mean_interval(np.array(list(by_unit.values())))}
    )
    scores[POOLED] = GridValue(
        value=mean(values), over_seeds=stdev(values) if len(values) > 1 else None
    )
    return _row(
        grid,
        name,
        list(cells.values()),
        scores=scores,
        comparisons=[],
        per_class={
            label: mean(found["per_class"][label]["f1"] for found in pooled) for label in classes
        },
        confusion=np.sum([found["confusion"] for found in pooled], axis=0).tolist(),
        one_class=shares,
    )


def _pooled(cells: Cells, seed: int, classes: Sequence[str]) -> dict[str, Any]:
    """Scores over the decisions of all folds of one seed."""
    chosen = [cell for (_, s), cell in cells.items() if s == seed]
    references = [label for cell in chosen for label in cell["references"]]
    hypotheses = [label for cell in chosen for label in cell["hypotheses"]]
    return metrics(references, hypotheses, classes)


def in_order(row: GridSystem) -> np.ndarray:
    """Weighted F1 of a system by unit, in one order for all systems."""
    by_unit = row.scores["weighted_f1"].by_unit
    assert by_unit is not None
    return np.array([by_unit[unit] for unit in sorted(by_unit)])


def compare_units(baseline: str, after: np.ndarray, before: np.ndarray) -> Comparison:
    """Compare weighted F1 by unit of a system and of its baseline, in one order."""
    differences = after - before
    return Comparison(
        metric="weighted_f1",
        baseline=baseline,
        difference=float(differences.mean()),
        interval=mean_interval(differences),
        p=sign_flip_p(differences),
    )


# --- recognisers and translators: texts of one set, by seed


def _texts(grid: config.Grid, cells: Sequence[Cell], target: str | None) -> dict[str, Any]:
    names = TEXT_METRICS["asr" if target is None else "st"]
    statistics = {name: statistics_of(name, target) for name in names}
    by_system = _by_system(cells)
    # By metric, then system, then seed: what the metric adds up, (utterances, k).
    counts = {
        name: {
            system: {
                seed: found.count(cell["references"], cell["hypotheses"])
                for (_, seed), cell in of_system.items()
            }
            for system, of_system in by_system.items()
        }
        for name, found in statistics.items()
    }
    rows = []
    for system in grid.systems:
        base = () if grid.baseline in (None, system.name) else (grid.baseline,)
        others = dict.fromkeys([*system.than, *base])
        rows.append(
            _row(
                grid,
                system.name,
                list(by_system[system.name].values()),
                scores={
                    name: _text_value(counts[name][system.name], statistics[name]) for name in names
                },
                comparisons=[
                    _text_comparison(str(other), system.name, counts[name], statistics[name])
                    for other in others
                    for name in names
                ],
                per_class=None,
                confusion=None,
            )
        )
    references = cells[0]["references"]
    return {
        "unit": "utterance",
        "units": len(references),
        "folds": 1,
        "metrics": list(names),
        "words": sum(len(line.split()) for line in references),
        "target": target,
        "signatures": {n: f.signature if target else NORMALISATION for n, f in statistics.items()},
        "systems": rows,
    }


def _text_value(counts: Mapping[int, np.ndarray], statistics: Statistics) -> GridValue:
    stacked = np.stack(list(counts.values()))
    value, interval = mean_score(stacked, statistics.score)
    each = statistics.score(stacked.sum(axis=1)).tolist()
    return GridValue(
        value=value,
        interval=interval,
        by_seed=dict(zip(map(str, counts), each, strict=True)),
        over_seeds=stdev(each) if len(each) > 1 else None,
    )


def _text_comparison(
    baseline: str,
    system: str,
    counts: Mapping[str, Mapping[int, np.ndarray]],
    statistics: Statistics,
) -> Comparison:
    """Compare two systems over the seeds that both were trained with."""
    seeds = [seed for seed in counts[system] if seed in counts[baseline]]
    first, second = (
        np.stack([counts[name][seed] for seed in seeds]) for name in (baseline, system)
    )
    found = difference(first, second, statistics.score)
    each = statistics.score(second.sum(axis=1)) - statistics.score(first.sum(axis=1))
    return Comparison(
        metric=statistics.metric,
        baseline=baseline,
        difference=float(each.mean()),
        interval=None if found is None else found.interval,
        p=None if found is None else found.p,
        by_seed=dict(zip(map(str, seeds), each.tolist(), strict=True)),
    )
