"""Scores of runs against the bytes of their deployed files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from espnet_ext.results.metrics import METRICS, Metric
from espnet_ext.results.peers import Peer
from espnet_ext.results.plots.figures import (
    MARKERS,
    error_bar,
    legend_below,
    new_figure,
    plain_log,
    save_figure,
)
from espnet_ext.results.plots.labels import label_points
from espnet_ext.results.schema import Result

_SAME = 0.01  # share by which sizes differ that a plot cannot show next to each other
_LOGARITHMIC = 10  # ratio of scores from which on their axis is logarithmic

# Runs by the name of their series, each with the label of its point, which may be empty.
type Series = Mapping[str, Sequence[tuple[str, Result]]]


def plot_sizes(series: Series, path: str | os.PathLike, peers: Sequence[Peer] = ()) -> bool:
    """Draw the main metric, with its interval, against the deployed size; a panel for each set.

    Of a run that was decoded by several methods, the first is drawn. Of runs of about the same
    size, each is shifted a little to the right of those before it. Of ``peers`` the WER is drawn,
    where that is the main metric.

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
    figure, axes = new_figure(len(sets), width=7.5, height=4.2, columns=1)
    drawn = [
        _draw_set(axis, sized, [peer for peer in peers if peer.set == name], name, metric)
        for axis, name in zip(axes, sets, strict=True)
    ]
    handles = {title: handle for found, _ in drawn for title, handle in found.items()}
    legend_below(figure, handles if len(handles) > 1 else {}, columns=3)
    figure.draw_without_rendering()  # places the axes
    for axis, (_, points) in zip(axes, drawn, strict=True):
        label_points(axis, points)
    save_figure(figure, path)
    return True


def _draw_set(
    axis: Any, series: Series, peers: Sequence[Peer], name: str, metric: Metric
) -> tuple[dict[str, Any], list[tuple[float, float, str]]]:
    """Draw the scores of a set; return what a legend names, and points (x, y, label)."""
    handles: dict[str, Any] = {}
    points: list[tuple[float, float, str]] = []
    ends: list[float] = []
    seen: list[float] = []
    every = [(title, list(_points(runs, name, metric))) for title, runs in series.items()]
    for count in dict.fromkeys(peer.utterances for peer in peers):
        ran = [peer for peer in peers if peer.utterances == count]
        title = f"published models, {count} utterances"
        every.append((title, list(_peer_points(ran, metric))))
    for number, (title, found) in enumerate(every):
        if not found:
            continue
        sizes = []
        for size, *_ in found:
            shift = sum(abs(size / other - 1) < _SAME for other in seen)
            sizes.append(size * 1.02**shift)
            seen.append(size)
        values, below, above = zip(*(bar for _, bar, _ in found), strict=True)
        style = {"fmt": MARKERS[number % len(MARKERS)], "color": f"C{number}"}
        handles[title] = axis.errorbar(
            sizes, values, yerr=(below, above), capsize=2, markersize=4, elinewidth=0.8, **style
        )
        points += zip(sizes, values, (label for *_, label in found), strict=True)
        ends += [value - low for value, low in zip(values, below, strict=True)]
        ends += [value + high for value, high in zip(values, above, strict=True)]
    plain_log(axis, "x", [x for x, *_ in points])
    axis.margins(y=0.12)
    if min(ends) > 0 and max(ends) / min(ends) > _LOGARITHMIC:
        plain_log(axis, "y", ends)
    axis.set(xlabel="deployed file, MB", ylabel=f"{metric.title} (95 % interval)", title=name)
    axis.grid(alpha=0.3)
    return handles, points


def _peer_points(
    peers: Sequence[Peer], metric: Metric
) -> Iterator[tuple[float, tuple[float, float, float], str]]:
    """The same of published models."""
    for peer in peers if metric.key == "wer" else ():
        yield peer.bytes / 1e6, error_bar(peer.wer, peer.interval, 1), peer.label


def _points(
    runs: Sequence[tuple[str, Result]], name: str, metric: Metric
) -> Iterator[tuple[float, tuple[float, float, float], str]]:
    """Size in MB, value with what its interval reaches below and above, and label."""
    for label, run in runs:
        score = run.score(name, run.scores[0].method)
        if score is not None and metric.key in score.metrics and not isinstance(run.bytes, str):
            found = score.metrics[metric.key]
            yield run.bytes / 1e6, error_bar(found.value, found.interval, metric.scale), label
