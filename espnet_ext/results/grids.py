"""The summary of a grid of trainings: its table, plots, notes, and the check of its file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from espnet_ext.config.grid import Grid
from espnet_ext.results import text_grids
from espnet_ext.results.pages.classes import plot_confusions
from espnet_ext.results.pages.tables import SIGNIFICANT, macs, markdown, p_value
from espnet_ext.results.schema import (
    Check,
    count,
    items,
    mapping,
    measured,
    named,
    number,
    optional,
    plain,
    read_validated,
    text,
    validate,
)
from espnet_ext.score.classification import metrics
from espnet_ext.score.significance.folds import mean_interval, paired_p, spread

METRICS = ("weighted_f1", "unweighted_accuracy", "accuracy")

_SPREAD = mapping(mean=number, over_units=optional(number), over_seeds=optional(number))
_ROW: dict[str, Check] = {
    "system": text,
    "parameters": count,
    "training_parameters": count,
    "macs_per_second": measured(number),
    "max_difference": number,
    "training_seconds": number,
    "epochs": number,
    "weighted_f1": _SPREAD,
    "unweighted_accuracy": _SPREAD,
    "accuracy": _SPREAD,
    "by_unit": named(number),  # weighted F1, mean over seeds
    "pooled": _SPREAD,  # weighted F1 over the decisions of all folds
    "per_class": named(number),  # F1, pooled over folds, mean over seeds
    "confusion": items(items(count)),  # summed over folds and seeds
    "difference": optional(number),  # of the mean weighted F1, to the baseline
    "p": optional(number),
}


def _row(value: Any, where: str) -> None:
    """A system; of models with a front end and a stack it also tells the size of the latter."""
    keys = dict(_ROW)
    if isinstance(value, Mapping) and "stack_parameters" in value:
        keys["stack_parameters"] = count
    mapping(**keys)(value, where)


GRID = mapping(
    dataset=text,
    task=text,
    grid=text,
    split=optional(text),
    part=text,
    unit=text,  # fold or speaker: over what a mean, an interval and a test are
    units=count,
    folds=count,
    seeds=items(count),
    classes=items(text),
    decisions=count,
    majority=number,  # weighted F1 of always naming the commonest class, pooled
    baseline=optional(text),
    known=optional(named(number)),  # weighted F1 that others reached, from the grid's file
    systems=items(_row),
    commit=text,
    versions=named(text),
    machine=named(plain),
    command=text,
)


def check(record: Mapping[str, Any], source: str) -> None:
    """Raise UserError if a summary does not fit its schema."""
    validate(record, GRID, source)


def summary(
    grid: Grid, cells: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, Any]:
    """Summarise the cells of a grid, every one of which is there."""
    folds = len({cell["fold"] for cell in cells})
    if grid.unit == "speaker":
        cells = _by_speaker(cells, classes)
    by_system: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for cell in cells:
        by_system.setdefault(cell["system"], {})[cell["fold"], cell["seed"]] = cell
    first = next(iter(by_system.values()))
    one_seed = [cell for (_, seed), cell in first.items() if seed == grid.seeds[0]]
    references = [label for cell in one_seed for label in cell["references"]]
    base = by_system.get(grid.baseline) if grid.baseline else None
    return {
        "grid": grid.name,
        "split": grid.split,
        "part": grid.part,
        "unit": grid.unit,
        "units": len(one_seed),
        "folds": folds,
        "seeds": list(grid.seeds),
        "classes": list(classes),
        "decisions": len(references),
        "majority": metrics(references, references, classes)["majority"]["weighted_f1"],
        "baseline": grid.baseline,
        "known": dict(grid.known) or None,
        "systems": [
            _system(name, found, base if name != grid.baseline else None, classes)
            for name, found in by_system.items()
        ],
    }


def _by_speaker(cells: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a cell for each speaker instead of each fold: what was decided about the speaker.

    Decisions about one speaker in several folds are put together.
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


def _system(
    name: str,
    cells: Mapping[tuple[str, int], Mapping[str, Any]],
    base: Mapping[tuple[str, int], Mapping[str, Any]] | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    one = next(iter(cells.values()))
    pooled = [_pooled(cells, seed, classes) for seed in sorted({seed for _, seed in cells})]
    values = [found["weighted_f1"] for found in pooled]
    scores = {key: cell["weighted_f1"] for key, cell in cells.items()}
    row: dict[str, Any] = {
        "system": name,
        "parameters": one["parameters"],
        "training_parameters": one["training_parameters"],
        "macs_per_second": one["macs_per_second"],
        "max_difference": max(cell["max_difference"] for cell in cells.values()),
        "training_seconds": mean(cell["training_seconds"] for cell in cells.values()),
        "epochs": mean(cell["epochs"] for cell in cells.values()),
    }
    if "stack_parameters" in one:
        row["stack_parameters"] = one["stack_parameters"]
    for metric in METRICS:
        found = spread({key: cell[metric] for key, cell in cells.items()})
        row[metric] = {
            "mean": found.mean,
            "over_units": found.over_folds,
            "over_seeds": found.over_seeds,
        }
    row["by_unit"] = {
        fold: mean(value for (f, _), value in scores.items() if f == fold)
        for fold in dict.fromkeys(fold for fold, _ in scores)
    }
    row["pooled"] = {
        "mean": mean(values),
        "over_units": None,
        "over_seeds": stdev(values) if len(values) > 1 else None,
    }
    row["per_class"] = {
        label: mean(found["per_class"][label]["f1"] for found in pooled) for label in classes
    }
    row["confusion"] = np.sum([found["confusion"] for found in pooled], axis=0).tolist()
    row["difference"] = row["p"] = None
    if base is not None:
        before = {key: cell["weighted_f1"] for key, cell in base.items()}
        row["difference"] = mean(scores.values()) - mean(before.values())
        row["p"] = paired_p(before, scores)
    return row


def _pooled(
    cells: Mapping[tuple[str, int], Mapping[str, Any]], seed: int, classes: Sequence[str]
) -> dict[str, Any]:
    """Scores over the decisions of all folds of one seed."""
    chosen = [cell for (_, s), cell in cells.items() if s == seed]
    references = [label for cell in chosen for label in cell["references"]]
    hypotheses = [label for cell in chosen for label in cell["hypotheses"]]
    return metrics(references, hypotheses, classes)


def table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row a system."""
    over = f"{record['unit']}s"
    header = ["system", "params", "in training", "MACs/s", f"weighted F1, mean of {over}"]
    header += ["95 % CI", "pooled weighted F1", "UA", "accuracy", "F1 = 0", "vs baseline"]
    header += ["s a training"]
    stacks = any("stack_parameters" in row for row in record["systems"])
    if stacks:
        header.insert(2, "of the stack")
    rows = []
    for row in record["systems"]:
        missed = [name for name, value in row["per_class"].items() if value == 0]
        cells = [row["system"], f"{row['parameters']:,}", f"{row['training_parameters']:,}"]
        if stacks:
            size = row.get("stack_parameters")
            cells.insert(2, "none" if size is None else f"{size:,}")
        cells += [macs(row["macs_per_second"])]
        found = [_spread_text(row[k], over) for k in ("weighted_f1", "pooled", *METRICS[1:])]
        cells += [found[0], _interval_text(_scores(row)), *found[1:], ", ".join(missed) or "none"]
        rows.append([*cells, _versus(record, row), f"{row['training_seconds']:.0f}"])
    return header, rows


def _scores(row: Mapping[str, Any]) -> np.ndarray:
    """Weighted F1 by unit, in one order for all systems."""
    return np.array([row["by_unit"][unit] for unit in sorted(row["by_unit"])])


def _interval_text(scores: np.ndarray, form: str = ".3f") -> str:
    found = mean_interval(scores)
    return "one" if found is None else f"{found[0]:{form}} to {found[1]:{form}}"


def _versus(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "no baseline" if record["baseline"] is None else "baseline"
    if row["p"] is None:
        return f"{row['difference']:+.3f} (too few to test)"
    base = next(other for other in record["systems"] if other["system"] == record["baseline"])
    interval = _interval_text(_scores(row) - _scores(base), "+.3f")
    return f"{row['difference']:+.3f} ({interval}, p {p_value(row['p'])}, {_told(row)})"


def class_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): F1 by class, pooled over folds, mean over seeds."""
    rows = [
        [row["system"], *(f"{row['per_class'][label]:.3f}" for label in record["classes"])]
        for row in record["systems"]
    ]
    return ["F1 by class", *record["classes"]], rows


def _told(row: Mapping[str, Any]) -> str:
    if row["p"] >= SIGNIFICANT:
        return "not told apart"
    return "better" if row["difference"] > 0 else "worse"


def _spread_text(value: Mapping[str, Any], unit: str) -> str:
    parts = [
        f"{value[key]:.3f} over {over}"
        for key, over in (("over_units", unit), ("over_seeds", "seeds"))
        if value[key] is not None
    ]
    return f"{value['mean']:.3f}" + (f" (sd {', '.join(parts)})" if parts else "")


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table."""
    split = record["split"] or "the fixed split"
    known = ", ".join(f"{name} {score:.3f}" for name, score in (record["known"] or {}).items())
    return [
        f"{split}: {record['folds']} folds, seeds {', '.join(map(str, record['seeds']))}, "
        f"{record['decisions']} decisions a seed on {record['part']}; always naming the commonest "
        f"class scores {record['majority']:.3f} pooled.",
        *([f"known scores: {known}."] if known else []),
        f"Intervals are Student's, over the {record['units']} {record['unit']}s. The test is a "
        f"paired permutation test over {record['unit']}s, seeds averaged; folds share training "
        "data, so a p just below 0.05 is weak evidence.",
    ]


def page_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Return the section of RESULTS.md."""
    if text_grids.is_text_grid(record):
        return text_grids.page_lines(record, folder)
    name = record["grid"]
    lines = [f"### Grid {name}", "", markdown(*table(record)), ""]
    lines += [f"- {note}" for note in notes(record)]
    lines += [f"- command: `{record['command']}`; commit {record['commit']}"]
    lines += ["", markdown(*class_table(record)), ""]
    lines += [f"![weighted F1 of grid {name}]({folder}/grids/{name}.svg)"]
    if sweep(record):
        lines += [f"![curve of grid {name}]({folder}/grids/{name}_curve.svg)"]
    return [*lines, f"![confusions of grid {name}]({folder}/grids/{name}_confusion.svg)"]


def sweep(record: Mapping[str, Any]) -> dict[float, Mapping[str, Any]]:
    """Systems that differ in one number alone, by that number; empty if fewer than three do.

    ``vary`` names them so: hrf_ratio-2, hrf_ratio-4, ...
    """
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in record["systems"]:
        stem, _, value = row["system"].rpartition("-")
        if stem and value.replace(".", "", 1).isdecimal():
            found.setdefault(stem, {})[float(value)] = row
    longest = max(found.values(), key=len, default={})
    return dict(sorted(longest.items())) if len(longest) > 2 else {}


def plot(record: Mapping[str, Any], folder: Path, kind: str = "png") -> list[Path]:
    """Draw weighted F1 of all systems in their order, the curve of a sweep, the confusions."""
    made = [folder / f"{record['grid']}.{kind}"]
    names = [row["system"] for row in record["systems"]]
    _plot_systems(record, made[0], names, record["systems"])
    swept = sweep(record)
    if swept:
        made.append(folder / f"{record['grid']}_curve.{kind}")
        _plot_systems(record, made[-1], list(swept), list(swept.values()))
    made.append(folder / f"{record['grid']}_confusion.{kind}")
    matrices = {row["system"]: row["confusion"] for row in record["systems"]}
    plot_confusions(record["classes"], matrices, made[-1])
    return made


def _plot_systems(
    record: Mapping[str, Any],
    path: Path,
    places: Sequence[str] | Sequence[float],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Draw weighted F1 over places: names of systems, or the numbers of a sweep."""
    from espnet_ext.results.pages.plots import new_figure, save_figure

    figure, (axis,) = new_figure(1)
    means = [row["weighted_f1"]["mean"] for row in rows]
    seeds = [row["weighted_f1"]["over_seeds"] or 0.0 for row in rows]
    axis.errorbar(places, means, yerr=seeds, marker="o", capsize=3)
    lines = {"commonest class": record["majority"], **(record["known"] or {})}
    base = next((r for r in record["systems"] if r["system"] == record["baseline"]), None)
    if base is not None:
        lines[base["system"]] = base["weighted_f1"]["mean"]
    for color, (name, value) in enumerate(lines.items(), 1):
        axis.axhline(value, color=f"C{color}", linestyle=":", label=f"{name} {value:.3f}")
    if len(places) > 0 and isinstance(places[0], str):
        axis.tick_params(axis="x", rotation=90, labelsize=7)
    else:
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [f"{place:g}" for place in places])
        axis.set_xlabel(rows[0]["system"].rpartition("-")[0].rpartition("_")[2])
    axis.set(ylabel=f"weighted F1, mean of {record['unit']}s (bar: sd of seeds)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)
    save_figure(figure, path)


def read_grids(folder: Path) -> list[dict[str, Any]]:
    """Read and check ``<folder>/<dataset>_<task>/grids/*.json``.

    Raises:
        UserError: a file is not JSON or does not fit the schema.
    """

    def fits(value: Any, where: str) -> None:
        is_text = isinstance(value, Mapping) and text_grids.is_text_grid(value)
        (text_grids.TEXT_GRID if is_text else GRID)(value, where)

    paths = sorted(folder.glob("*/grids/*.json"))
    return [read_validated(path, fits, "publish that grid again") for path in paths]
