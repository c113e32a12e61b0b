"""Curves of one run's training, read from ESPnet's logs."""

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from espnet_ext.results.plots.figures import legend_below, new_figure, save_figure

# metric -> part ("train" or "valid") -> epoch -> value
Curves = dict[str, dict[str, dict[int, float]]]

_EPOCH = re.compile(r"(\d+)epoch results: (.*)")
_PART = re.compile(r"\[(\w+)\] ([^\[]*)")
_VALUE = re.compile(r"(\w+)=([^,\s]+)")
_SHOWN = ("loss", "loss_ctc", "loss_att", "acc", "macro_precision", "cer_ctc", "cer", "wer")
_STYLES: dict[str, Any] = {
    "train": {"color": "C0", "marker": "."},
    "valid": {"color": "C1", "marker": "x", "linestyle": "--"},
}


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
    handles: dict[str, Any] = {}
    for axis, metric in zip(axes, shown, strict=True):
        for part, values in sorted(curves[metric].items()):
            epochs = sorted(values)
            (line,) = axis.plot(epochs, [values[e] for e in epochs], **_STYLES[part])
            handles[part] = line
        axis.set(xlabel="epoch", title=metric)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    legend_below(figure, handles)
    save_figure(figure, path)
