"""Claims of papers: the table of RESULTS.md, and a page for each paper."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from espnet_ext.results.claims.failures import LEAST_BLEU, MOST_OF_ONE_CLASS, MOST_WER
from espnet_ext.results.claims.papers import Judged, Paper, counted
from espnet_ext.results.claims.unusable import LEAST_TRANSLATED, MOST_WRONG
from espnet_ext.results.claims.verdicts import DOES_NOT, FAILED, HOLDS, INCONCLUSIVE, WORSE
from espnet_ext.results.pages.text import markdown, paragraph
from espnet_ext.results.schema import NOT_MEASURED

_VERDICTS = (HOLDS, DOES_NOT, INCONCLUSIVE, FAILED, NOT_MEASURED)
_HEADER = [HOLDS, "does not", INCONCLUSIVE, "failed", "missing", "answered", "worse"]


def _counts(judged: Sequence[Judged]) -> list[str]:
    """How much evidence there is of each verdict; an open question is answered, or not.

    The last is how much of all of it says that the system is significantly worse.
    """
    verdicts = [verdict for one in judged for *_, verdict in one.findings]
    plain = [verdict.removesuffix(WORSE) for verdict in verdicts]
    found = Counter(verdict if verdict in _VERDICTS else "answered" for verdict in plain)
    found["worse"] = sum(verdict.endswith(WORSE) for verdict in verdicts)
    return [str(found[verdict] or "") for verdict in (*_VERDICTS, "answered", "worse")]


def claims_section(
    papers: Mapping[str, Paper], judged: Mapping[str, Sequence[Judged]], folder: str
) -> list[str]:
    """Return the section of RESULTS.md: papers, then a row for each claim; empty without papers.

    Args:
        papers: claims, by the names of their files.
        judged: their verdicts.
        folder: of the results, relative to RESULTS.md.
    """
    if not papers:
        return []
    rows = []
    for name, paper in papers.items():
        link = f"[{paper.paper.partition(' (')[0]}]({folder}/claims/{name}.md)"
        rows.append([link, *_counts(judged[name])])
    lines = [
        "## Claims of papers",
        "",
        paragraph(
            "A claim in our words, and how many pieces of evidence here support it. Every verdict "
            "is computed from the committed results by the rule that the paper's page names. "
            "Failed: a training that decides nothing; missing: not measured. An open question is "
            "answered, or inconclusive. Worse: in how many of these the system is significantly "
            "worse, whatever the verdict."
        ),
        "",
        markdown(["paper", *_HEADER], rows),
    ]
    for name, paper in papers.items():
        rows = [[one.claim.claim, *_counts([one])] for one in judged[name]]
        lines += ["", f"### {paper.paper}", "", paragraph(f"Scope: {paper.scope}"), ""]
        lines += [markdown(["claim", *_HEADER], rows)]
    return lines


def paper_page(paper: Paper, judged: Sequence[Judged]) -> str:
    """Return the page of a paper: its claims, their rules, and all evidence."""
    lines = [f"# {paper.paper}", "", paragraph(f"Scope: {paper.scope}"), "", *_how_judged(judged)]
    for number, one in enumerate(judged, 1):
        counts = counted(verdict for *_, verdict in one.findings)
        lines += ["", f"## {number}. {one.claim.claim}", ""]
        lines += [f"- published: {one.claim.published} ({one.claim.where})"]
        lines += [f"- rule: {_rule(one)}", f"- here: {counts}", ""]
        lines += [markdown(["evidence", "measured here", "verdict"], one.findings)]
    return "\n".join(lines) + "\n"


def _rule(one: Judged) -> str:
    options = one.claim.options()
    rule = options.pop("rule")
    return ", ".join([rule, *(f"{key} {_option(option)}" for key, option in options.items())])


def _option(option: Any) -> str:
    if isinstance(option, Mapping):
        return " and ".join(f"{key} {value}" for key, value in option.items())
    return " and ".join(option) if isinstance(option, list) else str(option)


def _how_judged(judged: Sequence[Judged]) -> list[str]:
    """When a claim holds, by rule: the docstrings of the rules that are used here."""
    rules = {one.claim.options()["rule"]: type(one.claim) for one in judged}
    text = (
        "A difference of two classifiers of a grid is that of weighted F1, mean over folds or "
        "speakers, with Student's 95 % interval and the p of a permutation test over them, seeds "
        "averaged; of recognisers and translators it is that of WER, CER, BLEU or chrF, with the "
        "interval and the p of the bootstrap that the recipe's page explains. Better and worse "
        "need p < 0.05. What neither holds nor fails is inconclusive. A system that names one "
        f"class in over {MOST_OF_ONE_CLASS:.0%} of its decisions, is no better than always naming "
        f"the commonest class, or has a WER above {MOST_WER:.0%} or a BLEU below {LEAST_BLEU:.0f}, "
        "is no evidence: its training failed."
    )
    notes = (
        "After a verdict, *(worse)* says that the system is significantly worse than the other. "
        "*Interval wider than the effect in question*: than what was published, or the margin of "
        "the rule, so the data may be too few for it. *None is better than*: no system of the row "
        "is significantly better than a trivial one, so their differences say "
        f"little; so it is where both have a WER above {MOST_WRONG:.0%} or a BLEU below "
        f"{LEAST_TRANSLATED:.0f}. *Untuned*: a "
        "system has the learning rate that was chosen for another, so what it loses may be due to "
        "that."
    )
    lines = [paragraph(text), "", paragraph(notes), ""]
    for name, kind in sorted(rules.items()):
        text = " ".join((kind.__doc__ or "").replace("``", "`").split())
        lines.append(f"- `{name}`: {text[0].lower()}{text[1:]}")
    return lines
