"""RESULTS.md: a page that is a function of the committed result files and of nothing else."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.results import grids
from espnet_ext.results.benchmarks import sections, stack_times
from espnet_ext.results.claims import Claim, claims_lines
from espnet_ext.results.evidence import Results
from espnet_ext.results.pages import classes, families, layers, tables, translation
from espnet_ext.results.pages.tables import (
    comparison,
    decoding_rtf,
    duration,
    edits,
    markdown,
    rate,
)
from espnet_ext.results.run import corpus_name, published_path, run_name
from espnet_ext.results.schema import NOT_MEASURED

COMMAND = "espnet-ext report --all"
README_MARKERS = ("<!-- results:begin -->", "<!-- results:end -->")


def readme_with_results(readme: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return ``readme`` with the summary tables between its markers, or as it is without them.

    Families of nested systems stand in RESULTS.md alone.
    """
    begin, end = README_MARKERS
    before, found, rest = readme.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        return readme
    tables = []
    for name in dict.fromkeys(corpus_name(result) for result in results):
        group = families.without(result for result in results if corpus_name(result) == name)
        if not group:
            continue
        tables += ["", markdown(*_summary(group)), ""]
    return before + "\n".join([begin, *tables, end]) + after


def results_page(
    results: Sequence[Mapping[str, Any]],
    folder: str = "results",
    plotted: Collection[str] = (),
    benchmarks: Mapping[str, Any] | None = None,
    committed_grids: Sequence[Mapping[str, Any]] = (),
    of_stacks: Sequence[tuple[str, Mapping[str, Any]]] = (),
    papers: Mapping[str, Sequence[Claim]] | None = None,
) -> str:
    """Return the text of RESULTS.md.

    Args:
        results: validated results in the order of the page.
        folder: where their files and plots are, relative to the page.
        plotted: names ``<dataset>_<task>`` that have a plot of WER or BLEU against bytes.
        benchmarks: what ``benchmarks.read_benchmarks`` found.
        committed_grids: validated summaries of grids.
        of_stacks: what ``layers.read_stacks`` found.
        papers: claims of papers, by paper.
    """
    lines = [
        "```bash",
        f"{COMMAND}   # regenerates this page and its plots from {folder}/*/*.json",
        "```",
        "",
        "# Results",
        "",
        "WER and CER are pooled over a set; CER counts the blanks between words. Intervals are "
        "95 % bootstrap intervals by utterance, and by speaker too where a set has few "
        "speakers. A run is called better or worse only where the paired bootstrap test says "
        "p < 0.05 and, with few speakers, the interval by speaker excludes 0. A number that "
        "was not measured is written so. Parameters and bytes are those of the deployed model; "
        "1 MB is 10^6 bytes; RTF is time over audio time, one process with one thread, in the "
        "median of the rounds over a fixed choice of utterances; MACs/s are "
        "multiply-accumulates per second of audio.",
    ]
    if translation.is_translation(results):
        lines[-1] += (
            " BLEU and chrF are sacreBLEU's, from 0 to 100, with its own bootstrap intervals and "
            "paired test, which draw segments; their signatures say the rest."
        )
    if any("mapsswe" in (s["baseline"] or {}) for r in results for s in r["scores"]):
        lines[-1] += (
            " MAPSSWE is NIST's matched-pairs test of words, over segments between words that "
            "both runs have right; the bootstrap decides, and takes speakers into account."
        )
    times = stack_times(benchmarks or {})
    told = claims_lines(papers or {}, Results.of(results, committed_grids, of_stacks, times))
    lines += ["", *told] if told else []
    records = [*results, *committed_grids, *(record for _, record in of_stacks)]
    for name in dict.fromkeys(corpus_name(r) for r in records):
        lines += ["", f"## {name}"]
        for record in committed_grids:
            if corpus_name(record) == name:
                lines += ["", *grids.page_lines(record, f"{folder}/{name}")]
        for section in layers.sections(of_stacks, name, folder):
            lines += ["", *section]
        group = [result for result in results if corpus_name(result) == name]
        single = families.without(group)
        if single:
            lines += ["", markdown(*_summary(single))]
            plot = "BLEU" if translation.is_translation(single) else "WER"
            if name in plotted:
                lines += ["", f"![{plot} against bytes]({folder}/{name}/{plot.lower()}_bytes.svg)"]
            lines += ["", "### Against the baselines", "", *_comparisons(single)]
        for family in families.find_families(group):
            lines += ["", *families.page_lines(family, f"{folder}/{name}")]
        for result in single:
            lines += ["", *_block(result, folder)]
    lines += sections(benchmarks or {}, folder)
    return "\n".join(lines) + "\n"


def _summary(group: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    if classes.is_classification(group):
        return classes.summary_table(group)
    return (translation if translation.is_translation(group) else tables).summary_table(group)


def _comparisons(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if classes.is_classification(results):
        found = [
            f"- {run_name(r)}, {s['set']}: {classes.comparison(s)}."
            for r in results
            for s in r["scores"]
            if s["baseline"]
        ]
        return found or ["No run here names a baseline."]
    metrics, compare = ("wer", "cer"), comparison
    if translation.is_translation(results):
        metrics, compare = ("bleu", "chrf"), translation.comparison
    lines = [
        f"- {run_name(result)}, {score['set']}, {score['method']}: "
        f"{'; '.join(compare(score, metric) for metric in metrics)}."
        for result in results
        for score in result["scores"]
        if score["baseline"]
    ]
    return lines or ["No run here names a baseline."]


def _errors(
    result: Mapping[str, Any], speed: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row for each set and method, ``speed`` its last two cells."""
    header = ["set", "method", "utterances", "words", "WER % (95 % CI)", "word errors"]
    header += ["CER % (95 % CI)", "character errors", "RTF 1-thread (of rounds)", "peak RSS MB"]
    rows = []
    for score in result["scores"]:
        row = [score["set"], score["method"], str(score["utterances"]), str(score["words"])]
        for metric in ("wer", "cer"):
            row += [rate(score, metric), edits(score[metric])]
        rows.append([*row, *speed.get((score["set"], score["method"]), [NOT_MEASURED] * 2)])
    return header, rows


def _block(result: Mapping[str, Any], folder: str) -> list[str]:
    training = result["training"]
    logs = {(log["set"], log["method"]): log for log in result["decoding"]}
    speed = {
        key: [decoding_rtf(log) + _rounds(log), _number(log["peak_rss_mb"])]
        for key, log in logs.items()
    }
    path = published_path(Path(folder), result).as_posix()
    facts = {
        "command": f"`{result['command']}`",
        "config": f"`{result['config_path']}`, resolved in [{Path(path).name}]({path})",
        "encoder, variant": f"{result['encoder']}, {result['variant']}",
        "checkpoint": _checkpoint(result),
        "commit": result["commit"],
        "seed": str(result["seed"]),
        "parameters": _parts(result["parameters"]),
        "parameters in training": _parts(training["parameters"]),
        "file": f"{_number(result['bytes'])} bytes",
        "training": f"{duration(training['seconds'])}, {training['epochs']} epochs, "
        f"peak {_number(training['peak_rss_mb'])} MB; device {training['device']}, "
        f"threads {training['threads']}, {training['dtype']}",
        "versions": _parts(result["versions"]),
        "machine": _parts(result["machine"]),
    }
    lines = [f"### {run_name(result)}", ""]
    if classes.is_classification([result]):
        for score in result["scores"]:
            lines += [f"{classes.score_line(score)}.", "", *classes.class_tables(score), ""]
        for (name, _), log in logs.items():
            facts[f"decoding {name}"] = (
                f"RTF {decoding_rtf(log)}{_rounds(log)} with one thread, "
                f"peak RSS {_number(log['peak_rss_mb'])} MB"
            )
    elif translation.is_translation([result]):
        lines += [markdown(*translation.block_table(result, speed)), ""]
        facts |= translation.signatures(result)
    else:
        lines += [markdown(*_errors(result, speed)), ""]
        facts["text normalisation"] = "; ".join(
            dict.fromkeys(score["normalisation"] for score in result["scores"])
        ).replace("*", "\\*")
    return lines + [f"- {label}: {fact}" for label, fact in facts.items()]


def _rounds(log: Mapping[str, Any]) -> str:
    """The least and largest real-time factor of the rounds that ``rtf`` is the median of."""
    rounds = log["rtf_rounds"]
    return "" if rounds == NOT_MEASURED else f" ({min(rounds):.3g}-{max(rounds):.3g})"


def _checkpoint(result: Mapping[str, Any]) -> str:
    """The deployed file and, if it is the training's average, of which epochs it is."""
    average, file = result["training"]["average"], result["checkpoint"]
    if average == NOT_MEASURED or file != average["file"]:
        return f"{file}"
    return f"{file}, epochs {', '.join(map(str, sorted(average['epochs'])))}"


def _parts(value: Any) -> str:
    if value == NOT_MEASURED:
        return NOT_MEASURED
    return ", ".join(f"{key} {_number(item)}" for key, item in value.items())


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
