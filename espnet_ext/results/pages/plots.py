"""Plots of one run's training, and of error rate or BLEU against size over all runs."""

import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.files import atomic_path
from espnet_ext.results.run import run_name
from espnet_ext.results.schema import NOT_MEASURED

# metric -> part ("train" or "valid") -> epoch -> value
Curves = dict[str, dict[str, dict[int, float]]]

_EPOCH = re.compile(r"(\d+)epoch results: (.*)")
_PART = re.compile(r"\[(\w+)\] ([^\[]*)")
_VALUE = re.compile(r"(\w+)=([^,\s]+)")
# Label of an axis, and what makes a score a number of it.
AXES = {"wer": ("WER, %", 100), "bleu": ("BLEU", 1)}
_SHOWN = ("loss", "loss_ctc", "loss_att", "acc", "macro_precision", "cer_ctc", "cer", "wer")


def training_logs(exp: Path) -> list[Path]:
    """Return the training logs of an experiment, oldest first."""
    found = {*exp.glob("train*.log"), *exp.glob("log/train*.log")}
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path))


def read_curves(logs: Iterable[str | os.PathLike]) -> Curves:
    """Read the lines that ESPnet logs after each epoch (espnet2.train.reporter, log_message).

    A later log wins where a run was killed and an epoch was trained again; values that are not
    finite numbers are left out.
    """
    curves: Curves = {}
    for log in logs:
        with open(log, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                found = _EPOCH.search(line)
                if found:
                    _add_epoch(curves, int(found[1]), found[2])
    return curves


def _add_epoch(curves: Curves, epoch: int, message: str) -> None:
    for part, values in _PART.findall(message):
        for metric, value in _VALUE.findall(values):
            if part not in ("train", "valid") or metric not in _SHOWN:
                continue
            try:
                measured = float(value)
            except ValueError:
                continue
            if math.isfinite(measured):
                curves.setdefault(metric, {}).setdefault(part, {})[epoch] = measured


def plot_training(curves: Curves, path: str | os.PathLike) -> None:
    """Draw each metric of ``curves`` (not empty) over the epochs into an image file."""
    shown = [metric for metric in _SHOWN if metric in curves]
    figure, axes = new_figure(len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        for part, values in sorted(curves[metric].items()):
            epochs = sorted(values)
            axis.plot(epochs, [values[e] for e in epochs], marker=".", label=part)
        axis.set(xlabel="epoch", title=metric)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def plot_score_bytes(
    results: Sequence[Mapping[str, Any]], path: str | os.PathLike, metric: str = "wer"
) -> bool:
    """Draw WER or BLEU with its interval against the deployed file's size, a panel for each set.

    Points of the same size (a merged model has its baseline's) are moved apart sideways.

    Returns:
        False, and no file, if the size of no run that has this metric was measured.
    """
    sized = [r for r in results if r["bytes"] != NOT_MEASURED and metric in r["scores"][0]]
    if not sized:
        return False
    unit, scale = AXES[metric]
    sets = list(dict.fromkeys(score["set"] for result in sized for score in result["scores"]))
    figure, axes = new_figure(len(sets))
    styles: dict[str, int] = {}
    for axis, name in zip(axes, sets, strict=True):
        drawn: list[int] = []
        for result in sized:
            for score in result["scores"]:
                if score["set"] != name:
                    continue
                label = f"{run_name(result)}, {score['method']}"
                style = styles.setdefault(label, len(styles))
                near = sum(abs(size / result["bytes"] - 1) < 0.02 for size in drawn)
                at = (result["bytes"] / 1e6, scale)
                _point(axis, at, score[metric], near, style, label)
                drawn.append(result["bytes"])
        axis.set(xlabel="deployed file, MB", ylabel=f"{unit} (95 % interval)", title=name)
        axis.margins(x=0.15)
        axis.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    save_figure(figure, path)
    return True


def _point(
    axis: Any, at: tuple[float, int], found: Mapping[str, Any], steps: int, style: int, label: str
) -> None:
    from matplotlib.transforms import ScaledTranslation

    size, scale = at
    value, below, above = error_bar(found, scale)
    aside = ScaledTranslation(0.12 * steps, 0, axis.figure.dpi_scale_trans)
    axis.errorbar(
        size,
        value,
        yerr=[[below], [above]],
        fmt="os^vD"[style % 5],
        color=f"C{style % 10}",
        capsize=3,
        label=label,
        transform=axis.transData + aside,
    )
    # With a transform of their own the points do not count for the limits of the axes.
    axis.update_datalim([(size, value - below), (size, value + above)])
    axis.autoscale_view()


def error_bar(found: Mapping[str, Any], scale: int) -> tuple[float, float, float]:
    """Return a score in units of 1 / ``scale`` and what its interval reaches below and above."""
    value = scale * found["value"]
    low, high = (scale * end for end in found["interval"] or (found["value"], found["value"]))
    # A percentile interval need not hold the value, and an error bar cannot be negative.
    return value, max(0.0, value - low), max(0.0, high - value)


def new_figure(panels: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, three beside one another."""
    from matplotlib.figure import Figure  # drawn without pyplot: no display, no global state

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    return figure, axes


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure; a file that it would not change is left alone."""
    import matplotlib

    # Fixed ids and no date: the same results give the same file, which is then left alone.
    drawn = io.BytesIO()
    kind = Path(path).suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": "espnet-ext"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(drawn, format=kind, metadata=metadata, dpi=120)
    if not Path(path).is_file() or Path(path).read_bytes() != drawn.getvalue():
        with atomic_path(path) as temporary:
            temporary.write_bytes(drawn.getvalue())
