"""Claims of papers as files state them, and the verdict on each piece of evidence.

A file results/claims/<paper>.yaml holds claims in our words and names committed results:

    paper: HRF (arXiv 2411.09339)
    scope: Published on IEMOCAP; measured here on ...
    claims:
      - claim: A light model scores higher when trained with HRF.
        where: abstract
        published: weighted F1 0.550 to 0.580
        rule: better
        gain: 0.03
        evidence:
          - {grid: hedgewars_ser1/voice, system: hrf_conformer_s, than: conformer_s}
          - {run: fotaq_asr1/hrf_conformer_xs, than: conformer_xs, set: test, metric: wer}

``results.claims.rules`` and ``scored`` have the rules and their keys, ``results.claims.evidence``
and ``whole`` the kinds of evidence. Verdicts are computed, never written.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.results.claims.base import Evidence
from espnet_ext.results.claims.rules import Claim
from espnet_ext.results.claims.scored import Scored
from espnet_ext.results.claims.verdicts import (
    FAILED,
    INCONCLUSIVE,
    UNTUNED,
    WORSE,
    BaseClaim,
    Finding,
    not_measured,
)
from espnet_ext.results.store import Results
from espnet_ext.validation import Items, Strict, Text, parse
from espnet_ext.yaml_files import read_yaml


class Paper(Strict):
    """A file of claims."""

    paper: Text
    scope: Text  # how what was measured differs from what was published
    claims: Items[Claim]


@dataclass(frozen=True)
class Judged:
    """A claim, and what each piece of its evidence says: (evidence, measured, verdict)."""

    claim: BaseClaim
    findings: list[tuple[str, str, str]]

    def counts(self) -> str:
        """How often there is each verdict: "holds 2, inconclusive 1"."""
        return counted(verdict for *_, verdict in self.findings)


def counted(verdicts: Iterable[str]) -> str:
    """Verdicts with how often there are of each, in the order of their first."""
    return ", ".join(f"{verdict} {n}" for verdict, n in Counter(verdicts).items())


def read_papers(folder: Path) -> dict[str, Paper]:
    """Read and check ``<folder>/claims/*.yaml``; return the papers by the names of the files.

    Raises:
        UserError: a file is not YAML, or a claim does not fit its rule.
    """
    found = {}
    for path in sorted((folder / "claims").glob("*.yaml")):
        found[path.stem] = parse(Paper, read_yaml(path), path)
    return found


def judge_paper(paper: Paper, results: Results, source: str) -> list[Judged]:
    """Judge all claims of a paper.

    Args:
        paper: the claims.
        results: committed results.
        source: file of the paper, for messages.

    Raises:
        UserError: a result is there, but has no such system, set or field as a claim names; or it
            is not, and the evidence does not say what is missing.
    """
    found = []
    for number, claim in enumerate(paper.claims, 1):
        try:
            findings = [(i.title(), *judge(claim, i, results)) for i in claim.evidence]
        except UserError as error:
            raise UserError(f"{source}: claim {number}: {error}") from None
        found.append(Judged(claim, findings))
    return found


def judge(claim: BaseClaim, item: Evidence, results: Results) -> Finding:
    """Judge a claim by one item of its evidence.

    Raises:
        UserError: as ``judge_paper``; or the result is not there and nothing says what is missing.
    """
    if not item.is_published(results):
        if item.missing is None:
            raise UserError(f"{item.title()}: not published; state under missing what it takes")
        return not_measured(item.missing)
    if not isinstance(claim, Scored):
        return claim.judge(item, results)
    if failures := item.failures(results):
        text, verdict = "; ".join(failures), FAILED
    else:
        text, verdict = claim.judge(item, results)
        if doubt := claim.doubt(item, results):
            text, verdict = text + doubt, INCONCLUSIVE + WORSE * verdict.endswith(WORSE)
    return text + UNTUNED * (item.untuned or claim.untuned), verdict
