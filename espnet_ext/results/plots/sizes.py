"""Scores of runs against the bytes of their deployed files."""

import os
from collections.abc import Iterator, Mapping, Sequence

from espnet_ext.results.metrics import METRICS, Metric
from espnet_ext.results.plots.figures import (
    MARKERS,
    error_bar,
    label_points,
    new_figure,
    plain_log,
    save_figure,
)
from espnet_ext.results.schema import Result

# Runs by the name of their series, each with the label of its point, which may be empty.
type Series = Mapping[str, Sequence[tuple[str, Result]]]


def plot_sizes(series: Series, path: str | os.PathLike) -> bool:
    """Draw the main metric, with its interval, against the deployed size; a panel for each set.

    Of a run that was decoded by several methods, the first is drawn. Each series is shifted a
    little to the right, since many runs have the same size.

    Returns:
        False, and no file, if the size of no run was measured.
    """
    sized = {
        name: [(label, run) for label, run in runs if not isinstance(run.bytes, str)]
        for name, runs in series.items()
    }
    every = [run for runs in sized.values() for _, run in runs]
    if not every:
        return False
    metric = METRICS[every[0].scores[0].main_metric]
    sets = list(dict.fromkeys(score.set for run in every for score in run.scores))
    figure, axes = new_figure(len(sets), width=6.0, height=4.2)
    handles = {}
    for axis, name in zip(axes, sets, strict=True):
        points: list[tuple[float, float, str]] = []
        for number, (title, runs) in enumerate(sized.items()):
            drawn = list(_points(runs, name, metric))
            if not drawn:
                continue
            sizes = [size * 1.02**number for size, *_ in drawn]
            values, *ends = zip(*(bar for _, bar, _ in drawn), strict=True)
            style = {"fmt": MARKERS[number % len(MARKERS)], "color": f"C{number}"}
            handles[title] = axis.errorbar(
                sizes, values, yerr=ends, capsize=2, markersize=4, elinewidth=0.8, **style
            )
            labels = [label for *_, label in drawn]
            points += zip(sizes, values, labels, strict=True)
        plain_log(axis, [x for x, *_ in points])
        axis.margins(y=0.12)
        axis.set(xlabel="deployed file, MB", ylabel=f"{metric.title} (95 % interval)", title=name)
        axis.grid(alpha=0.3)
        label_points(axis, points)
    if len(handles) > 1:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path)
    return True


def _points(
    runs: Sequence[tuple[str, Result]], name: str, metric: Metric
) -> Iterator[tuple[float, tuple[float, float, float], str]]:
    """Size in MB, value with what its interval reaches below and above, and label."""
    for label, run in runs:
        score = run.score(name, run.scores[0].method)
        if score is not None and metric.key in score.metrics and not isinstance(run.bytes, str):
            found = score.metrics[metric.key]
            yield run.bytes / 1e6, error_bar(found.value, found.interval, metric.scale), label
