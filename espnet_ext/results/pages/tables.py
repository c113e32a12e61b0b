"""Results as tables of text; every cell of a number that was not measured says so."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_ext.results.run import is_average, run_name
from espnet_ext.results.schema import NOT_MEASURED

FEW_SPEAKERS = 10  # up to here the interval by speaker is shown, and decides, too
SIGNIFICANT = 0.05
MEANING = {
    "better": "better than",
    "worse": "worse than",
    "equal": "equal to",
    "not told apart": "not told apart from",
}  # of a verdict, in a sentence


@dataclass(frozen=True)
class Metrics:
    """What one kind of scores adds to a table of runs; the first metric is compared."""

    titles: Mapping[str, str]  # of its metrics
    cell: Callable[[Mapping[str, Any], str], str]  # of a score and a metric
    p: str  # key of the comparison's p
    points: Callable[[Mapping[str, Any]], float]  # of a comparison
    verdict: Callable[[Mapping[str, Any], str], str]  # of a score and a metric


def summary_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row for each run and decoding method."""
    return runs_table(results, error_rates())


def error_rates() -> Metrics:
    """WER and CER."""
    return Metrics(
        titles={"wer": "WER %", "cer": "CER %"},
        cell=rate,
        p="p",
        points=lambda versus: 100 * versus["wer_difference"],
        verdict=verdict,
    )


def runs_table(
    results: Sequence[Mapping[str, Any]], metrics: Metrics
) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row for each run and decoding method, scored by ``metrics``."""
    sets = list(dict.fromkeys(score["set"] for result in results for score in result["scores"]))
    header = ["model", "method", "params", "file MB", "MACs/s", "RTF 1-thread"]
    header += [f"{name} {title} (95 % CI)" for name in sets for title in metrics.titles.values()]
    header += [f"{next(iter(metrics.titles)).upper()} vs baseline", "training time", "config"]
    rows = []
    for result in results:
        name = run_name(result)
        model = name if is_average(result) else f"{name} ({result['checkpoint']})"
        for method in dict.fromkeys(score["method"] for score in result["scores"]):
            scores = {s["set"]: s for s in result["scores"] if s["method"] == method}
            row = [model, method, parameters(result), megabytes(result["bytes"])]
            row += [macs(result["macs_per_second"]), _rtf(result, method)]
            row += [
                metrics.cell(scores[name], metric) if name in scores else NOT_MEASURED
                for name in sets
                for metric in metrics.titles
            ]
            row += [_versus(result, list(scores.values()), metrics)]
            row += [duration(result["training"]["seconds"])]
            rows.append([*row, result["config_path"]])
    return header, rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned so that it reads as plain text too."""
    cells = [[_escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: folded to the width of a terminal, or as Markdown into a file or a pipe."""
    if not sys.stdout.isatty():
        print(markdown(header, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)


def score_line(score: Mapping[str, Any]) -> str:
    """Return one score as a line for the terminal."""
    parts = []
    for metric, unit in (("wer", "words"), ("cer", "characters")):
        parts.append(
            f"{metric.upper()} {rate(score, metric)} % "
            f"({edits(score[metric])} of {score[unit]} {unit})"
        )
    line = f"{score['set']} {score['method']}: {', '.join(parts)}"
    if score["baseline"]:
        line += f"; {comparison(score, 'wer')}; {comparison(score, 'cer')}"
    return line


def rate(score: Mapping[str, Any], metric: str) -> str:
    """Return an error rate in percent with its 95 % interval, by speaker too where few."""
    found = score[metric]
    intervals = []
    if found["interval"]:
        intervals.append(_range(found["interval"]))
    if found["interval_by_speaker"] and _few(score):
        intervals.append(f"by speaker {_range(found['interval_by_speaker'])}")
    return f"{100 * found['value']:.1f} ({'; '.join(intervals) or 'no interval'})"


def edits(found: Mapping[str, Any]) -> str:
    """Return the counts of the three kinds of error."""
    return f"{found['substitutions']} S, {found['insertions']} I, {found['deletions']} D"


def verdict(score: Mapping[str, Any], metric: str) -> str:
    """Return ``better``, ``worse``, ``equal`` or ``not told apart`` from the baseline.

    Better and worse need p < 0.05 and, where speakers are few, an interval by speaker that
    excludes 0: utterances of one speaker are not independent.
    """
    versus = score["baseline"]
    prefix = "" if metric == "wer" else f"{metric}_"
    difference, p = versus[f"{metric}_difference"], versus[f"{prefix}p"]
    if difference == 0 and versus[f"{prefix}interval"] == [0, 0]:
        return "equal"
    by_speaker = versus[f"{prefix}interval_by_speaker"]
    if p is None or p >= SIGNIFICANT:
        return "not told apart"
    if by_speaker and _few(score) and by_speaker[0] <= 0 <= by_speaker[1]:
        return "not told apart"
    return "better" if difference < 0 else "worse"


def comparison(score: Mapping[str, Any], metric: str) -> str:
    """Return one sentence: how far from the baseline, and whether the paired test tells."""
    versus = score["baseline"]
    prefix = "" if metric == "wer" else f"{metric}_"
    difference = versus[f"{metric}_difference"]
    details = []
    for key, label in (("interval", "95 % interval"), ("interval_by_speaker", "by speaker")):
        low_high = versus[f"{prefix}{key}"]
        if low_high and (key == "interval" or _few(score)):
            details.append(f"{label} {100 * low_high[0]:+.1f} to {100 * low_high[1]:+.1f}")
    p = versus[f"{prefix}p"]
    details.append("too few utterances to test" if p is None else f"p {p_value(p)}")
    if metric == "wer":
        details += _mapsswe(versus)
    return (
        f"{metric.upper()} {MEANING[verdict(score, metric)]} {versus['tag']} "
        f"({100 * difference:+.1f} points; {', '.join(details)})"
    )


def parameters(result: Mapping[str, Any]) -> str:
    """Return the number of parameters of the deployed model, in millions."""
    found = result["parameters"]
    if found == NOT_MEASURED or "total" not in found:
        return NOT_MEASURED
    return f"{found['total'] / 1e6:.2f} M"


def megabytes(size: Any) -> str:
    """Return a file's size in MB (10^6 bytes)."""
    return size if size == NOT_MEASURED else f"{size / 1e6:.2f}"


def macs(value: Any) -> str:
    """Return multiply-accumulates per second of audio, in millions or thousands of millions."""
    if value == NOT_MEASURED:
        return value
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def duration(seconds: Any) -> str:
    """Return a time span in the two units that matter."""
    if seconds == NOT_MEASURED:
        return seconds
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def decoding_rtf(log: Mapping[str, Any]) -> str:
    """Return a real-time factor; where it was not on one CPU thread, the cell says on what."""
    if log["rtf"] == NOT_MEASURED:
        return NOT_MEASURED
    notes = []
    if log["threads"] == NOT_MEASURED:
        notes.append("threads not measured")
    elif log["threads"] != 1:
        notes.append(f"{log['threads']} threads")
    if log["device"] not in ("cpu", NOT_MEASURED):
        notes.append(log["device"])
    return f"{log['rtf']:.3g}" + (f" ({', '.join(notes)})" if notes else "")


def _rtf(result: Mapping[str, Any], method: str) -> str:
    cells = [decoding_rtf(log) for log in result["decoding"] if log["method"] == method]
    return cells[0] if cells else NOT_MEASURED


def _versus(
    result: Mapping[str, Any], scores: Sequence[Mapping[str, Any]], metrics: Metrics
) -> str:
    cells = []
    for score in scores:
        if score["baseline"]:
            cells.append(f"{score['set']} {difference(score, metrics)}")
    named = (result["config"].get("recipe") or {}).get("baseline")
    nothing = NOT_MEASURED if named not in (None, result["tag"]) else "no baseline named"
    return "; ".join(cells) or nothing


def difference(score: Mapping[str, Any], metrics: Metrics) -> str:
    """Return the points that a score, which names a baseline, lies above it, and the tests."""
    versus = score["baseline"]
    found = versus[metrics.p]
    tests = ["no test" if found is None else f"p {p_value(found)}"]
    tests += [*_mapsswe(versus), metrics.verdict(score, next(iter(metrics.titles)))]
    return f"{metrics.points(versus):+.1f} ({', '.join(tests)})"


def _mapsswe(versus: Mapping[str, Any]) -> list[str]:
    """The p of MAPSSWE, which results of before it was here lack."""
    p = versus.get("mapsswe", {}).get("p")
    return [] if p is None else [f"MAPSSWE p {p_value(p)}"]


def _few(score: Mapping[str, Any]) -> bool:
    return score["speakers"] is not None and score["speakers"] <= FEW_SPEAKERS


def _range(low_high: Sequence[float]) -> str:
    return f"{100 * low_high[0]:.1f}-{100 * low_high[1]:.1f}"


def p_value(p: float) -> str:
    """Return a p value to three places."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
