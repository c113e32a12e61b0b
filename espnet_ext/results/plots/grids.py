"""Scores of a grid's systems, the curve of a sweep, and confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.results.grids import Grid, GridSystem
from espnet_ext.results.metrics import ALWAYS, METRICS
from espnet_ext.results.plots.figures import error_bar, legend_below, new_figure, save_figure

_READABLE = 12  # classes whose counts can be read in a panel
_STYLES = (
    ":",
    "--",
    "-.",
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
)  # of lines, which colour alone tells badly


def sweep(record: Grid) -> dict[float, GridSystem]:
    """Systems that differ in one number alone, by that number; empty if fewer than three do.

    ``vary`` of a grid's file names them so: hrf_ratio-2, hrf_ratio-4, ...
    """
    found: dict[str, dict[float, GridSystem]] = {}
    for row in record.systems:
        stem, _, value = row.system.rpartition("-")
        if stem and value.replace(".", "", 1).isdecimal():
            found.setdefault(stem, {})[float(value)] = row
    longest = max(found.values(), key=len, default={})
    return dict(sorted(longest.items())) if len(longest) > 2 else {}


def best_row(record: Grid) -> GridSystem:
    """The system with the best main metric."""
    metric = METRICS[record.metrics[0]]
    return max(record.systems, key=lambda row: metric.direction * row.scores[metric.key].value)


def plot_grid(record: Grid, folder: Path, kind: str = "png") -> list[Path]:
    """Draw the systems, the curve of a sweep, and of classifiers the confusions; return paths."""
    made = [folder / f"{record.name}.{kind}"]
    _plot_systems(record, made[0])
    if swept := sweep(record):
        made.append(folder / f"{record.name}_curve.{kind}")
        _plot_sweep(record, swept, made[-1])
    if record.classes is not None:
        made.append(folder / f"{record.name}_confusion.{kind}")
        plot_confusions(record.classes, _shown(record), made[-1])
    return made


def _shown(record: Grid) -> dict[str, list[list[int]]]:
    """The confusions of the baseline and of the best system, by title."""
    base, best = record.row(record.baseline or ""), best_row(record)
    if base is None or base is best:
        role = "best" if base is None else "baseline and best"
        return {f"{role}: {best.system}": best.confusion or []}
    return {
        f"{role}: {row.system}": row.confusion or []
        for role, row in (("baseline", base), ("best", best))
    }


def _plot_systems(record: Grid, path: Path) -> None:
    """Draw a dot with its interval for each system, its name and size at the left."""
    metric, rows = METRICS[record.metrics[0]], record.systems
    figure, (axis,) = new_figure(1, width=7.5, height=1.4 + 0.2 * len(rows))
    places = range(len(rows))
    values, *ends = zip(*(_bar(row, metric.key) for row in rows), strict=True)
    axis.errorbar(values, places, xerr=ends, fmt="o", markersize=4, capsize=2)
    axis.set_yticks(places, [f"{row.system} ({_count(row.parameters)})" for row in rows])
    axis.tick_params(axis="y", labelsize=8)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=_title(record))
    axis.grid(alpha=0.3)
    legend_below(figure, _lines(record, axis.axvline))
    axis.autoscale_view()  # a line at the edge needs its margin
    save_figure(figure, path)


def _count(parameters: int) -> str:
    """A number of parameters, as a reader of a small model needs it too."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e4 else f"{parameters / 1e3:.1f} k"


def _title(record: Grid) -> str:
    """The main metric as an axis names it, and what its bars are, if there are any."""
    metric = METRICS[record.metrics[0]]
    drawn = any(row.scores[metric.key].interval for row in record.systems)
    return f"{metric.title} (95 % interval)" if drawn else metric.title


def _plot_sweep(record: Grid, swept: Mapping[float, GridSystem], path: Path) -> None:
    """Draw the main metric over the number in which systems differ."""
    metric, places = METRICS[record.metrics[0]], list(swept)
    figure, (axis,) = new_figure(1, width=6.0, height=4.0)
    values, *ends = zip(*(_bar(row, metric.key) for row in swept.values()), strict=True)
    axis.errorbar(places, values, yerr=ends, marker="o", markersize=4, capsize=3)
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()
    system, _, number = next(iter(swept.values())).system.rpartition("-")[0].rpartition("_")
    axis.set(xlabel=f"{number} of {system}" if system else number, ylabel=_title(record))
    axis.grid(alpha=0.3)
    legend_below(figure, _lines(record, axis.axhline))
    axis.autoscale_view()  # a line at the edge needs its margin
    save_figure(figure, path)


def _bar(row: GridSystem, metric: str) -> tuple[float, float, float]:
    found = row.scores[metric]
    return error_bar(found.value, found.interval, METRICS[metric].scale)


def _lines(record: Grid, draw: Any) -> dict[str, Any]:
    """Draw a line for the baseline, and for always the commonest class.

    Returns:
        the lines in the order of their scores, by name.
    """
    metric = METRICS[record.metrics[0]]
    scores = {}
    if record.majority is not None:
        scores[ALWAYS] = record.majority
    base = record.row(record.baseline or "")
    if base is not None:
        scores[f"baseline {base.system}"] = base.scores[metric.key].value
    lines = {}
    for number, (name, value) in enumerate(sorted(scores.items(), key=lambda item: item[1])):
        style = {"color": f"C{number + 1}", "linestyle": _STYLES[number % len(_STYLES)]}
        lines[f"{name}: {metric.number(value)}"] = draw(metric.scale * value, zorder=1, **style)
    return lines


def plot_confusions(
    classes: Sequence[str], matrices: Mapping[str, Sequence[Sequence[int]]], path: Path
) -> None:
    """Draw confusion matrices by name, rows in shares of the references, counts written in."""
    many = len(classes) > _READABLE
    side = 1.6 + 0.16 * len(classes) if many else 4.0
    columns = 1 if many else 2
    figure, axes = new_figure(len(matrices), width=side + 0.8, height=side, columns=columns)
    for axis, (name, confusion) in zip(axes, matrices.items(), strict=True):
        sums = [max(sum(row), 1) for row in confusion]
        shares = [[n / total for n in row] for row, total in zip(confusion, sums, strict=True)]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="none")
        if not many:  # else the colour shows it
            _write_counts(axis, confusion, shares)
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=90, fontsize=8)
        axis.set_yticks(ticks, classes, fontsize=8)
        axis.set_xlabel("recognised as")
        axis.set_ylabel("true class")
        axis.set_title(name, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, label="share of the true class")
    save_figure(figure, path)


def _write_counts(
    axis: Any, confusion: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> None:
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            if count:
                color = "white" if shares[i][j] > 0.5 else "black"
                axis.text(j, i, str(count), ha="center", va="center", color=color, fontsize=8)
