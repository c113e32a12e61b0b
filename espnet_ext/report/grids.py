"""The summary of a grid of trainings: its table, plots, notes, and the check of its file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from espnet_ext.grid import Grid
from espnet_ext.report.classes import plot_confusion
from espnet_ext.report.schema import (
    Check,
    count,
    items,
    mapping,
    measured,
    named,
    number,
    optional,
    plain,
    text,
    validate,
)
from espnet_ext.report.table import SIGNIFICANT, macs, markdown, p_value
from espnet_ext.score.classification import metrics
from espnet_ext.score.folds import paired_p, spread

METRICS = ("weighted_f1", "unweighted_accuracy", "accuracy")

_SPREAD = mapping(mean=number, over_folds=optional(number), over_seeds=optional(number))
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
    folds=count,
    seeds=items(count),
    classes=items(text),
    decisions=count,
    majority=number,  # weighted F1 of always naming the commonest class, pooled
    baseline=optional(text),
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
        "folds": len(one_seed),
        "seeds": list(grid.seeds),
        "classes": list(classes),
        "decisions": len(references),
        "majority": metrics(references, references, classes)["majority"]["weighted_f1"],
        "baseline": grid.baseline,
        "systems": [
            _system(name, found, base if name != grid.baseline else None, classes)
            for name, found in by_system.items()
        ],
    }


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
            "over_folds": found.over_folds,
            "over_seeds": found.over_seeds,
        }
    row["pooled"] = {
        "mean": mean(values),
        "over_folds": None,
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
    header = ["system", "params", "in training", "MACs/s", "weighted F1, mean of folds"]
    header += ["pooled weighted F1", "UA", "accuracy", "F1 = 0", "vs baseline", "s a training"]
    stacks = any("stack_parameters" in row for row in record["systems"])
    if stacks:
        header.insert(2, "of the stack")
    rows = []
    for row in record["systems"]:
        missed = [name for name, value in row["per_class"].items() if value == 0]
        versus = "no baseline" if record["baseline"] is None else "baseline"
        if row["difference"] is not None:
            p = "too few folds" if row["p"] is None else f"p {p_value(row['p'])}, {_told(row)}"
            versus = f"{row['difference']:+.3f} ({p})"
        cells = [row["system"], f"{row['parameters']:,}", f"{row['training_parameters']:,}"]
        if stacks:
            size = row.get("stack_parameters")
            cells.insert(2, "none" if size is None else f"{size:,}")
        cells += [macs(row["macs_per_second"])]
        cells += [_spread_text(row[key]) for key in ("weighted_f1", "pooled", *METRICS[1:])]
        rows.append([*cells, ", ".join(missed) or "none", versus, f"{row['training_seconds']:.0f}"])
    return header, rows


def _told(row: Mapping[str, Any]) -> str:
    if row["p"] >= SIGNIFICANT:
        return "not told apart"
    return "better" if row["difference"] > 0 else "worse"


def _spread_text(value: Mapping[str, Any]) -> str:
    parts = [
        f"{value[key]:.3f} {key.replace('_', ' ')}"
        for key in ("over_folds", "over_seeds")
        if value[key] is not None
    ]
    return f"{value['mean']:.3f}" + (f" (sd {', '.join(parts)})" if parts else "")


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table."""
    split = record["split"] or "the fixed split"
    return [
        f"{split}: {record['folds']} folds, seeds {', '.join(map(str, record['seeds']))}, "
        f"{record['decisions']} decisions a seed on {record['part']}; always naming the commonest "
        f"class scores {record['majority']:.3f} pooled.",
        "The test is a paired permutation test over folds, seeds averaged; folds share training "
        "data, so a p just below 0.05 is weak evidence.",
    ]


def page_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Return the section of RESULTS.md."""
    name = record["grid"]
    lines = [f"### Grid {name}", "", markdown(*table(record)), ""]
    lines += [f"- {note}" for note in notes(record)]
    lines += [f"- command: `{record['command']}`; commit {record['commit']}"]
    return [*lines, "", f"![weighted F1 of grid {name}]({folder}/grids/{name}.svg)"]


def plot(record: Mapping[str, Any], folder: Path, kind: str = "png") -> list[Path]:
    """Draw weighted F1 of all systems in their order, and the confusion of each (png only)."""
    from espnet_ext.report.plots import new_figure, save_figure

    figure, axes = new_figure(1)
    names = [row["system"] for row in record["systems"]]
    means = [row["weighted_f1"]["mean"] for row in record["systems"]]
    seeds = [row["weighted_f1"]["over_seeds"] or 0.0 for row in record["systems"]]
    places = range(len(names))
    axes[0].errorbar(places, means, yerr=seeds, marker="o", capsize=3)
    axes[0].axhline(record["majority"], color="gray", linestyle=":", label="commonest class")
    axes[0].set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    axes[0].set(ylabel="weighted F1, mean of folds (bar: sd of seeds)")
    axes[0].grid(alpha=0.3)
    axes[0].legend()
    made = [folder / f"{record['grid']}.{kind}"]
    save_figure(figure, made[0])
    if kind == "png":
        for row in record["systems"]:
            path = folder / f"confusion_{row['system']}.png"
            plot_confusion(record["classes"], row["confusion"], path)
            made.append(path)
    return made


def read_grids(folder: Path) -> list[dict[str, Any]]:
    """Read and check ``<folder>/<dataset>_<task>/grids/*.json``."""
    from espnet_ext.files import read_json

    found = []
    for path in sorted(folder.glob("*/grids/*.json")):
        record = read_json(path)
        check(record, str(path))
        found.append(record)
    return found
