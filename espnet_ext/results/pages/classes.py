"""Classification results as lines, tables and plots; the counterpart of ``table`` for WER."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.results.pages.tables import (
    FEW_SPEAKERS,
    MEANING,
    SIGNIFICANT,
    decoding_rtf,
    duration,
    macs,
    markdown,
    megabytes,
    p_value,
    parameters,
)
from espnet_ext.results.run import run_name
from espnet_ext.results.schema import NOT_MEASURED


def is_classification(results: Sequence[Mapping[str, Any]]) -> bool:
    """True if these are runs of a classifier."""
    return any("weighted_f1" in score for result in results for score in result["scores"])


def f1(score: Mapping[str, Any]) -> str:
    """Weighted F1 with its 95 % interval, by speaker too where few."""
    intervals = []
    if score["interval"]:
        intervals.append(_range(score["interval"]))
    if score["interval_by_speaker"] and score["speakers"] <= FEW_SPEAKERS:
        intervals.append(f"by speaker {_range(score['interval_by_speaker'])}")
    return f"{score['weighted_f1']:.3f} ({'; '.join(intervals) or 'no interval'})"


def score_line(score: Mapping[str, Any]) -> str:
    """Return one score as a line for the terminal; a class with F1 = 0 is named."""
    missed = [name for name, item in score["per_class"].items() if item["f1"] == 0]
    line = (
        f"{score['set']} {score['method']}: weighted F1 {f1(score)}, unweighted accuracy "
        f"{score['unweighted_accuracy']:.3f}, accuracy {score['accuracy']:.3f}; always "
        f"{score['majority']['class']}: {score['majority']['weighted_f1']:.3f}"
    )
    if missed:
        line += f"; F1 = 0 for {', '.join(missed)}"
    if score["baseline"]:
        line += f"; {comparison(score)}"
    return line


def verdict(score: Mapping[str, Any]) -> str:
    """Return ``better``, ``worse`` or ``not told apart``, by the rule of ``table.verdict``."""
    versus = score["baseline"]
    by_speaker = versus["interval_by_speaker"]
    few = score["speakers"] <= FEW_SPEAKERS
    if versus["p"] is None or versus["p"] >= SIGNIFICANT:
        return "not told apart"
    if by_speaker and few and by_speaker[0] <= 0 <= by_speaker[1]:
        return "not told apart"
    return "better" if versus["difference"] > 0 else "worse"


def comparison(score: Mapping[str, Any]) -> str:
    """Return one sentence: how far from the baseline, and whether the paired test tells."""
    versus = score["baseline"]
    details = []
    for key, label in (("interval", "95 % interval"), ("interval_by_speaker", "by speaker")):
        if versus[key] and (key == "interval" or score["speakers"] <= FEW_SPEAKERS):
            details.append(f"{label} {versus[key][0]:+.3f} to {versus[key][1]:+.3f}")
    details.append("too few to test" if versus["p"] is None else f"p {p_value(versus['p'])}")
    return (
        f"weighted F1 {MEANING[verdict(score)]} {versus['tag']} "
        f"({versus['difference']:+.3f}; {', '.join(details)})"
    )


def summary_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row a run."""
    sets = list(dict.fromkeys(score["set"] for result in results for score in result["scores"]))
    header = ["model", "params", "file MB", "MACs/s", "RTF 1-thread"]
    for name in sets:
        header += [f"{name} weighted F1 (95 % CI)", f"{name} UA", f"{name} accuracy"]
        header.append(f"{name} majority")
    header += ["vs baseline", "training time", "config"]
    rows = []
    for result in results:
        scores = {score["set"]: score for score in result["scores"]}
        logs = [decoding_rtf(log) for log in result["decoding"]]
        row = [run_name(result), parameters(result), megabytes(result["bytes"])]
        row += [macs(result["macs_per_second"]), logs[0] if logs else NOT_MEASURED]
        for name in sets:
            score = scores.get(name)
            row += [NOT_MEASURED] * 4 if score is None else _cells(score)
        versus = [f"{s['set']}: {comparison(s)}" for s in scores.values() if s["baseline"]]
        row += ["; ".join(versus) or "no baseline", duration(result["training"]["seconds"])]
        rows.append([*row, result["config_path"]])
    return header, rows


def _cells(score: Mapping[str, Any]) -> list[str]:
    return [
        f1(score),
        f"{score['unweighted_accuracy']:.3f}",
        f"{score['accuracy']:.3f}",
        f"{score['majority']['weighted_f1']:.3f}",
    ]


def class_tables(score: Mapping[str, Any]) -> list[str]:
    """Return lines: F1 by class, and the confusion matrix."""
    names = score["classes"]
    header = ["class", "F1", "precision", "recall", "support"]
    rows = [
        [name, *(f"{item[key]:.3f}" for key in ("f1", "precision", "recall")), str(item["support"])]
        for name, item in score["per_class"].items()
    ]
    matrix = [[name, *map(str, row)] for name, row in zip(names, score["confusion"], strict=True)]
    return [
        markdown(header, rows),
        "",
        markdown(["meant, then named", *names], matrix),
    ]


def plot_confusion(classes: Sequence[str], confusion: Sequence[Sequence[int]], path: Path) -> None:
    """Draw a confusion matrix, rows in shares of the references, counts written in."""
    plot_confusions(classes, {"": confusion}, path)


_READABLE = 12  # classes whose counts can be read in a panel


def plot_confusions(
    classes: Sequence[str], matrices: Mapping[str, Sequence[Sequence[int]]], path: Path
) -> None:
    """Draw confusion matrices by name beside one another, as ``plot_confusion`` draws one."""
    from espnet_ext.results.pages.plots import new_figure, save_figure

    figure, axes = new_figure(len(matrices))
    for axis, (name, confusion) in zip(axes, matrices.items(), strict=True):
        sums = [max(sum(row), 1) for row in confusion]
        shares = [[n / total for n in row] for row, total in zip(confusion, sums, strict=True)]
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for i, row in enumerate(confusion):
            for j, n in enumerate(row):
                if n == 0 or len(classes) > _READABLE:  # the colour says it
                    continue
                color = "white" if shares[i][j] > 0.5 else "black"
                axis.text(j, i, str(n), ha="center", va="center", color=color, fontsize=8)
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=45, ha="right")
        axis.set_yticks(ticks, classes)
        axis.set(xlabel="named", ylabel="meant", title=name)
    save_figure(figure, path)


def _range(low_high: Sequence[float]) -> str:
    return f"{low_high[0]:.3f}-{low_high[1]:.3f}"
