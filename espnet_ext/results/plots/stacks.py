"""Heat maps of the similarity of layers, and curves of accuracy as layers are removed."""

from pathlib import Path
from typing import Any

from espnet_ext.results.metrics import METRICS
from espnet_ext.results.plots.figures import (
    MARKERS,
    error_bar,
    legend_below,
    new_figure,
    save_figure,
)
from espnet_ext.results.stacks import MEASURES, SHARE, Pruning, Similarity, least_value

_MEASURES = {"cosine": "cosine", "cka": "linear CKA", "knn": "mutual neighbours (knn)"}
_ORDERS = {  # by the names that tables and commands have
    "backward": "late layers first",
    "forward": "early layers first",
    "bi_cosine": "least influence first, by cosine",
    "bi_knn": "least influence first, by neighbours",
}


def plot_stack(record: Similarity | Pruning, path: Path) -> None:
    """Draw a record."""
    (_heat_maps if isinstance(record, Similarity) else _curves)(record, path)  # type: ignore[arg-type]


def _heat_maps(record: Similarity, path: Path) -> None:
    figure, axes = new_figure(len(MEASURES), width=3.6, height=3.4)
    for axis, name in zip(axes, MEASURES, strict=True):
        matrix, blocks = record.matrix(name), record.blocks[name]
        image = axis.imshow(
            matrix, vmin=0, vmax=1, origin="lower", cmap="viridis", interpolation="none"
        )
        for first in blocks.first_layers or []:
            axis.axhline(first - 0.5, color="white", linestyle="--")
            axis.axvline(first - 0.5, color="white", linestyle="--")
        axis.set(xlabel="layer", ylabel="layer")
        axis.set_title(f"{_MEASURES[name]}, contrast {blocks.contrast:.2f}", fontsize=10)
        for which in (axis.xaxis, axis.yaxis):
            which.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes, shrink=0.8, label="similarity")
    save_figure(figure, path)


def _curves(record: Pruning, path: Path) -> None:
    """Draw the curve of each order, shifted a little so that intervals do not overlap."""
    metric = METRICS[record.metric]
    figure, (axis,) = new_figure(1, width=6.0, height=4.0)
    handles: dict[str, Any] = {}
    for number, order in enumerate(record.orders):
        places = [point.removed + 0.06 * number for point in order.points]
        scaled = [
            (metric.scale * point.value, [metric.scale * end for end in point.interval])
            for point in order.points
        ]
        bars = [error_bar(value, interval) for value, interval in scaled]
        values, *ends = zip(*bars, strict=True)
        style = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4, "capsize": 2}
        label = f"{order.order}: {_ORDERS[order.order]}" if order.order in _ORDERS else order.order
        handles[label] = axis.errorbar(places, values, yerr=ends, **style)
    least = least_value(record.metric, record.full)
    label = f"{SHARE:.0%} of all layers' score"
    handles[label] = axis.axhline(metric.scale * least, color="black", linestyle="--")
    if record.chance is not None:
        handles["chance"] = axis.axhline(metric.scale * record.chance, color="gray", linestyle=":")
    axis.set(xlabel="layers removed", ylabel=f"{metric.title} (95 % interval)")
    axis.set_ylim(bottom=0.0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    legend_below(figure, handles)
    save_figure(figure, path)
