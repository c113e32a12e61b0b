"""BLEU and chrF with 95 % intervals and a paired test: a thin layer over sacreBLEU.

Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018 (sacreBLEU); Papineni et al., ACL
2002 (BLEU); Popovic, WMT 2015 (chrF); Koehn, EMNLP 2004 (the bootstrap). The signatures that are
returned say all that a number depends on.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from espnet_ext.errors import UserError
from espnet_ext.score.pairs import Pairs

RESAMPLES = 1000  # sacreBLEU's default
SEED = 12345  # the same


def score_translations(
    pairs: Pairs, set_name: str, method: str, target: str, baseline_tag: str | None = None
) -> dict[str, Any]:
    """Score the translations of one set, case and punctuation as they are.

    Args:
        pairs: the texts.
        set_name: name of the set, for the record.
        method: how the hypotheses were decoded, for the record.
        target: language of the texts; sacreBLEU chooses its tokenizer by it.
        baseline_tag: what ``pairs.baseline`` came from; needed if that is given.

    Returns:
        The content of a score file (``report.schema`` describes it). BLEU and chrF are from 0 to
        100. An interval is sacreBLEU's: mean of the resamples, plus and minus half the width of
        their middle 95 %, cut off at 0. Segments are drawn, so segments of one speaker count as
        independent.

    Raises:
        UserError: sacreBLEU lacks what it needs to cut this language into words.
    """
    score: dict[str, Any] = {
        "set": set_name,
        "method": method,
        "target": target,
        "utterances": len(pairs.ids),
        "speakers": None if pairs.speakers is None else len(set(pairs.speakers)),
        "words": sum(len(text.split()) for text in pairs.references),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": 0.95},
    }
    with _fixed_seed():
        for name, metric in metrics(target).items():
            score[name] = _rated(metric, pairs)
        score["baseline"] = None
        if pairs.baseline is not None:
            found = _paired(pairs.baseline, pairs, target)
            score["baseline"] = {"tag": baseline_tag, **found}
    return score


def _bleu(target: str) -> BLEU:
    # sacreBLEU knows languages without their regions.
    language = target.replace("_", "-").partition("-")[0]
    try:
        # force: a text that has blanks before full stops is scored as it is, without a warning.
        return BLEU(trg_lang=language, force=True)
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"sacreBLEU cannot cut '{target}' into words: {reason[:120]}; "
            f"pip install 'sacrebleu[{language}]'"
        ) from None


def metrics(target: str) -> dict[str, Metric]:
    """New metrics by name, since a metric remembers how it was last asked.

    Raises:
        UserError: sacreBLEU lacks what it needs to cut this language into words.
    """
    return {"bleu": _bleu(target), "chrf": CHRF()}


def _rated(metric: Metric, pairs: Pairs) -> dict[str, Any]:
    several = len(pairs.ids) > 1
    found = metric.corpus_score(
        pairs.hypotheses, [pairs.references], n_bootstrap=RESAMPLES if several else 1
    )
    interval = None
    if several:
        interval = [max(0.0, float(found._mean - found._ci)), float(found._mean + found._ci)]
    result = {"value": float(found.score), "interval": interval}
    if isinstance(metric, BLEU):
        result["brevity_penalty"] = float(found.bp)
        result["precisions"] = [float(p) for p in found.precisions]
    return result | {"signature": str(metric.get_signature())}


def _paired(baseline: Sequence[str], pairs: Pairs, target: str) -> dict[str, Any]:
    """Differences (this run minus the baseline) and sacreBLEU's two-sided p.

    It is None where there is nothing to test: one segment, or the same hypotheses twice, for
    which sacreBLEU's formula would give the smallest p of all.
    """
    found = metrics(target)
    names = {str(metric.corpus_score([""], [[""]]).name): key for key, metric in found.items()}
    systems: list[tuple[str, Sequence[str]]] = [
        ("baseline", baseline),
        ("system", pairs.hypotheses),
    ]
    _, scores = PairedTest(systems, found, [pairs.references], "bs", RESAMPLES)()
    result: dict[str, Any] = {}
    testable = len(pairs.ids) > 1 and list(baseline) != list(pairs.hypotheses)
    for name, key in names.items():
        before, now = scores[name]
        assert not isinstance(before, str) and not isinstance(now, str)
        result[f"{key}_difference"] = float(now.score - before.score)
        result[f"{key}_p"] = now.p_value if testable else None
    return result


@contextlib.contextmanager
def _fixed_seed() -> Iterator[None]:
    """sacreBLEU takes its seed from a variable of the environment only; and be quiet."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(SEED)
    logger = logging.getLogger("sacrebleu")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
