"""Translation results as lines and tables; the counterpart of ``table`` for BLEU and chrF."""

from collections.abc import Mapping, Sequence
from typing import Any

from espnet_ext.results.pages.tables import MEANING, SIGNIFICANT, Metrics, p_value, runs_table
from espnet_ext.results.schema import NOT_MEASURED

NAMES = {"bleu": "BLEU", "chrf": "chrF"}  # of the metrics, as they are printed


def is_translation(results: Sequence[Mapping[str, Any]]) -> bool:
    """True if these are runs of speech translation."""
    return any("bleu" in score for result in results for score in result["scores"])


def cell(score: Mapping[str, Any], metric: str) -> str:
    """BLEU or chrF with its 95 % interval."""
    found = score[metric]
    if not found["interval"]:
        return f"{found['value']:.1f} (no interval)"
    low, high = found["interval"]
    return f"{found['value']:.1f} ({low:.1f}-{high:.1f})"


def score_line(score: Mapping[str, Any]) -> str:
    """Return one score as a line for the terminal, with the signature of BLEU."""
    line = (
        f"{score['set']} {score['method']}: BLEU {cell(score, 'bleu')}, chrF "
        f"{cell(score, 'chrf')}, brevity penalty {score['bleu']['brevity_penalty']:.3f}, "
        f"{score['utterances']} utterances into {score['target']}; {score['bleu']['signature']}"
    )
    if score["baseline"]:
        line += f"; {comparison(score, 'bleu')}; {comparison(score, 'chrf')}"
    return line


def verdict(score: Mapping[str, Any], metric: str) -> str:
    """Return ``better``, ``worse``, ``equal`` or ``not told apart`` from the baseline.

    Better and worse need p < 0.05 of sacreBLEU's paired bootstrap, which draws segments.
    """
    versus = score["baseline"]
    difference, p = versus[f"{metric}_difference"], versus[f"{metric}_p"]
    if difference == 0 and p is None:
        return "equal"
    if p is None or p >= SIGNIFICANT or difference == 0:
        return "not told apart"
    return "better" if difference > 0 else "worse"


def comparison(score: Mapping[str, Any], metric: str) -> str:
    """Return one sentence: how far from the baseline, and whether the paired test tells."""
    versus = score["baseline"]
    p, difference = versus[f"{metric}_p"], versus[f"{metric}_difference"]
    test = "nothing to test" if p is None else f"p {p_value(p)}"
    meaning = MEANING[verdict(score, metric)]
    return f"{NAMES[metric]} {meaning} {versus['tag']} ({difference:+.1f}, {test})"


def summary_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row for each run and decoding method."""
    return runs_table(
        results,
        Metrics(
            titles=NAMES,
            cell=cell,
            p="bleu_p",
            points=lambda versus: versus["bleu_difference"],
            verdict=verdict,
        ),
    )


def block_table(
    result: Mapping[str, Any], speed: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): one row for each set and method, ``speed`` its last two cells."""
    header = ["set", "method", "into", "utterances", "words", "BLEU (95 % CI)", "precisions"]
    header += ["brevity penalty", "chrF (95 % CI)", "RTF 1-thread (of rounds)", "peak RSS MB"]
    rows = []
    for score in result["scores"]:
        bleu = score["bleu"]
        row = [score["set"], score["method"], score["target"], str(score["utterances"])]
        row += [str(score["words"]), cell(score, "bleu")]
        row.append("/".join(f"{value:.1f}" for value in bleu["precisions"]))
        row += [f"{bleu['brevity_penalty']:.3f}", cell(score, "chrf")]
        rows.append([*row, *speed.get((score["set"], score["method"]), [NOT_MEASURED] * 2)])
    return header, rows


def signatures(result: Mapping[str, Any]) -> dict[str, str]:
    """The different signatures of a run's scores, by metric."""
    return {
        f"{name} signature": ", ".join(
            dict.fromkeys(f"`{score[metric]['signature']}`" for score in result["scores"])
        )
        for metric, name in NAMES.items()
    }
