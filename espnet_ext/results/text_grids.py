"""The summary of a grid of recognisers or translators: systems x seeds, on one set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from espnet_ext.config.grid import Grid
from espnet_ext.data.text import NORMALISATION
from espnet_ext.results.pages.tables import SIGNIFICANT, duration, macs, markdown, p_value
from espnet_ext.results.pages.translation import NAMES
from espnet_ext.results.schema import (
    Check,
    count,
    interval,
    items,
    mapping,
    named,
    number,
    optional,
    plain,
    text,
    validate,
)
from espnet_ext.score.significance.seeds import RESAMPLES, Statistics, difference, mean_score

_VALUE: dict[str, Check] = {
    "value": number,  # mean over seeds; error rates as fractions, BLEU and chrF from 0 to 100
    "interval": optional(interval),
    "by_seed": named(number),
    "over_seeds": optional(number),  # standard deviation
}
_PAIR: dict[str, Check] = {
    "seeds": items(count),  # both were trained with
    "difference": number,
    "interval": optional(interval),
    "p": optional(number),
    "by_seed": named(number),
}
_ROW: dict[str, Check] = {
    "system": text,
    "after": optional(text),
    "seeds": items(count),
    "parameters": count,
    "training_parameters": count,
    "macs_per_second": plain,
    "max_difference": number,
    "training_seconds": number,
    "epochs": number,
    "scores": named(mapping(**_VALUE)),  # by metric
    "than": optional(named(named(mapping(**_PAIR)))),  # by system, then by metric
}
TEXT_GRID = mapping(
    dataset=text,
    task=text,
    grid=text,
    part=text,
    utterances=count,
    words=count,
    metrics=items(text),
    target=optional(text),
    signatures=optional(named(text)),  # of sacreBLEU, by metric
    seeds=items(count),
    systems=items(mapping(**_ROW)),
    commit=text,
    versions=named(text),
    machine=named(plain),
    command=text,
)


def is_text_grid(record: Mapping[str, Any]) -> bool:
    """True for the summary of a grid whose words were scored, not its classes."""
    return "metrics" in record


def check(record: Mapping[str, Any], source: str) -> None:
    """Raise UserError if a summary does not fit its schema."""
    validate(record, TEXT_GRID, source)


def summary(
    grid: Grid, cells: Sequence[Mapping[str, Any]], target: str | None = None
) -> dict[str, Any]:
    """Summarise the cells of a grid, every one of which is there.

    Args:
        grid: the grid.
        cells: what ``bin.grid`` wrote.
        target: language of translations; None of a recogniser.
    """
    metrics = ["wer", "cer"] if target is None else list(NAMES)
    statistics = {metric: Statistics(metric, target) for metric in metrics}
    by_system: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_system.setdefault(cell["system"], []).append(cell)
    counts = {
        (name, cell["seed"], metric): found.count(cell["references"], cell["hypotheses"])
        for name, of_system in by_system.items()
        for cell in of_system
        for metric, found in statistics.items()
    }
    rows = [_row(system, by_system[system.name], statistics, counts) for system in grid.systems]
    for system, row in zip(grid.systems, rows, strict=True):
        base = () if grid.baseline in (None, system.name) else (grid.baseline,)
        pairs = {}
        for other in dict.fromkeys([*system.than, *base]):
            seeds = [s for s in row["seeds"] if (other, s, metrics[0]) in counts]
            pairs[other] = {
                metric: _pair(system.name, other, seeds, statistics[metric], counts)
                for metric in metrics
            }
        row["than"] = pairs or None
    references = cells[0]["references"]
    return {
        "grid": grid.name,
        "part": grid.part,
        "utterances": len(references),
        "words": sum(len(line.split()) for line in references),
        "metrics": metrics,
        "target": target,
        "signatures": {m: f.signature for m, f in statistics.items()} if target else None,
        "seeds": list(grid.seeds),
        "systems": rows,
    }


_Counts = Mapping[tuple[str, int, str], np.ndarray]


def _row(
    system: Any,
    cells: Sequence[Mapping[str, Any]],
    statistics: Mapping[str, Statistics],
    counts: _Counts,
) -> dict[str, Any]:
    seeds = [cell["seed"] for cell in cells]
    scores = {}
    for metric, found in statistics.items():
        stacked = np.stack([counts[system.name, seed, metric] for seed in seeds])
        value, ends = mean_score(stacked, found.score)
        each = found.score(stacked.sum(axis=1)).tolist()
        scores[metric] = {
            "value": value,
            "interval": None if ends is None else list(ends),
            "by_seed": dict(zip(map(str, seeds), each, strict=True)),
            "over_seeds": stdev(each) if len(each) > 1 else None,
        }
    one = cells[0]
    return {
        "system": system.name,
        "after": None if system.after is None else system.after.name,
        "seeds": seeds,
        **{k: one[k] for k in ("parameters", "training_parameters", "macs_per_second")},
        "max_difference": max(cell["max_difference"] for cell in cells),
        "training_seconds": mean(cell["training_seconds"] for cell in cells),
        "epochs": mean(cell["epochs"] for cell in cells),
        "scores": scores,
    }


def _pair(
    name: str, other: str, seeds: Sequence[int], statistics: Statistics, counts: _Counts
) -> dict[str, Any]:
    first, second = (
        np.stack([counts[system, seed, statistics.metric] for seed in seeds])
        for system in (other, name)
    )
    found = difference(first, second, statistics.score)
    each = statistics.score(second.sum(axis=1)) - statistics.score(first.sum(axis=1))
    return {
        "seeds": list(seeds),
        "difference": float(each.mean()),
        "interval": None if found is None else list(found.interval),
        "p": None if found is None else found.p,
        "by_seed": dict(zip(map(str, seeds), each.tolist(), strict=True)),
    }


def told(pair: Mapping[str, Any], metric: str) -> str:
    """Return ``better``, ``worse``, ``equal`` or ``not told apart`` of a comparison."""
    if pair["interval"] == [0, 0]:  # the same errors in every utterance
        return "equal"
    if pair["p"] is None or pair["p"] >= SIGNIFICANT:
        return "not told apart"
    return "better" if sign(metric) * pair["difference"] > 0 else "worse"


def title(metric: str) -> str:
    """Return the metric's name as it is printed."""
    return NAMES.get(metric, metric.upper())


def sign(metric: str) -> int:
    """Return 1 where more is better, -1 for an error rate."""
    return 1 if metric in NAMES else -1


def table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row a system."""
    metrics = record["metrics"]
    header = ["system", "starts from", "params", "in training", "MACs/s", "seeds"]
    header += [f"{_axis(metric)} (95 % CI; sd of seeds)" for metric in metrics]
    rows = []
    for row in record["systems"]:
        cells = [row["system"], row["after"] or "as its config says", f"{row['parameters']:,}"]
        cells += [f"{row['training_parameters']:,}", macs(row["macs_per_second"])]
        cells += [str(len(row["seeds"]))]
        cells += [_value(row["scores"][metric], metric) for metric in metrics]
        rows.append([*cells, duration(row["training_seconds"])])
    return [*header, "a training"], rows


def comparisons(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row for each pair of systems that the grid's file names."""
    header = ["system", "against", "seeds"]
    header += [f"{title(metric)} difference (95 % CI, p)" for metric in record["metrics"]]
    rows = []
    for row in record["systems"]:
        for other, found in (row["than"] or {}).items():
            seeds = str(len(found[record["metrics"][0]]["seeds"]))
            pairs = [_pair_text(found[metric], metric) for metric in record["metrics"]]
            rows.append([row["system"], other, seeds, *pairs])
    return header, rows


def _scale(metric: str) -> int:
    return 1 if sign(metric) > 0 else 100


def _axis(metric: str) -> str:
    return title(metric) if sign(metric) > 0 else f"{title(metric)} %"


def _value(found: Mapping[str, Any], metric: str) -> str:
    scale = _scale(metric)
    ends = "no interval"
    if found["interval"] is not None:
        ends = "-".join(f"{scale * end:.1f}" for end in found["interval"])
    sd = found["over_seeds"]
    return f"{scale * found['value']:.1f} ({ends}" + (")" if sd is None else f"; {scale * sd:.1f})")


def _pair_text(pair: Mapping[str, Any], metric: str) -> str:
    scale = _scale(metric)
    text = f"{scale * pair['difference']:+.1f}"
    if pair["p"] is None:
        return f"{text} (too few to test)"
    low, high = (scale * end for end in pair["interval"])
    return f"{text} ({low:+.1f} to {high:+.1f}, p {p_value(pair['p'])}, {told(pair, metric)})"


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table."""
    what = NORMALISATION
    if record["signatures"]:
        found = (f"{title(metric)} {text}" for metric, text in record["signatures"].items())
        what = f"sacreBLEU, from 0 to 100: {', '.join(found)}"
    return [
        f"set {record['part']}: {record['utterances']} utterances, {record['words']:,} words; "
        f"seeds {', '.join(map(str, record['seeds']))}; {what}.",
        "A score is the mean over seeds. Intervals and p are of a bootstrap that draws utterances "
        f"and seeds ({RESAMPLES:,} draws; two systems on the same ones, seed by seed); of a system "
        "with one seed it draws utterances alone. Many pairs stand here: of twenty equal ones, "
        "one would have p < 0.05.",
    ]


def page_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Return the section of RESULTS.md."""
    name = record["grid"]
    lines = [f"### Grid {name}", "", markdown(*table(record)), ""]
    if any(row["than"] for row in record["systems"]):
        lines += [markdown(*comparisons(record)), ""]
    lines += [f"- {note}" for note in notes(record)]
    lines += [f"- command: `{record['command']}`; commit {record['commit']}", ""]
    return [*lines, f"![{title(record['metrics'][0])} of grid {name}]({folder}/grids/{name}.svg)"]


def plot(record: Mapping[str, Any], folder: Path, kind: str = "png") -> list[Path]:
    """Draw the first metric of all systems over their parameters."""
    from espnet_ext.results.pages.plots import error_bar, new_figure, save_figure

    metric = record["metrics"][0]
    path = folder / f"{record['grid']}.{kind}"
    figure, (axis,) = new_figure(1)
    for row in record["systems"]:
        value, below, above = error_bar(row["scores"][metric], _scale(metric))
        axis.errorbar(
            row["parameters"], value, yerr=[[below], [above]], marker="o", capsize=3, ls=""
        )
        axis.annotate(row["system"], (row["parameters"], value), fontsize=6)
    axis.set(xlabel="parameters", ylabel=_axis(metric), xscale="log")
    axis.grid(alpha=0.3)
    save_figure(figure, path)
    return [path]
