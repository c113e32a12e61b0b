"""BLEU and chrF with 95 % intervals and a paired test: a thin layer over sacreBLEU.

Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018 (sacreBLEU); Papineni et al., ACL
2002 (BLEU); Popovic, WMT 2015 (chrF); Koehn, EMNLP 2004 (the bootstrap). The signatures in a score
say everything that a number depends on.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from espnet_ext.errors import UserError
from espnet_ext.languages import script_of
from espnet_ext.score.pairs import Pairs
from espnet_ext.score.significance.bootstrap import CONFIDENCE

RESAMPLES = 1000  # sacreBLEU's default
SEED = 12345  # the same

# By script (ISO 15924): the language whose tokenizer sacreBLEU has. All others have blanks between
# words, except those of UNSEGMENTED, whose BLEU is over characters.
_TOKENIZED = {"Hans": "zh", "Hant": "zh", "Hani": "zh", "Jpan": "ja", "Kore": "ko"}
UNSEGMENTED = {"Khmr": "Khmer", "Laoo": "Lao", "Mymr": "Burmese", "Thai": "Thai", "Tibt": "Tibetan"}


def score_translations(pairs: Pairs, set_name: str, method: str, target: str) -> dict[str, Any]:
    """Score the translations of one set, case and punctuation as they are.

    Args:
        pairs: the texts.
        set_name: name of the set, for the record.
        method: the decoding method, for the record.
        target: language of the texts, as a code or a tag; its script decides the tokenizer.

    Returns:
        The score, as ``results.schema.TranslationScore`` has it. BLEU and chrF are from 0 to 100.
        An interval is sacreBLEU's: mean of the resamples, plus and minus half the width of
        their middle 95 %, cut off at 0. Segments are drawn, so segments of one speaker count as
        independent.

    Raises:
        UserError: no such language, or sacreBLEU lacks what cuts it into words.
    """
    with _fixed_seed():
        rated = {name: _rated(metric, pairs) for name, metric in metrics(target).items()}
        compared = {name: _paired(one, pairs, target) for name, one in pairs.baselines.items()}
    bleu = rated["bleu"]["score"]
    return {
        "task": "st",
        "set": set_name,
        "method": method,
        "speakers": None if pairs.speakers is None else len(set(pairs.speakers)),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
        "metrics": {
            name: {"value": float(found["score"].score), "interval": found["interval"]}
            for name, found in rated.items()
        },
        "comparisons": [
            {"metric": metric, "baseline": name, **found}
            for name, by_metric in compared.items()
            for metric, found in by_metric.items()
        ],
        "target": target,
        "utterances": len(pairs.ids),
        "words": sum(len(text.split()) for text in pairs.references),
        "brevity_penalty": float(bleu.bp),
        "precisions": [float(p) for p in bleu.precisions],
        "signatures": {name: found["signature"] for name, found in rated.items()},
    }


def _bleu(target: str) -> BLEU:
    script = script_of(target)
    language = _TOKENIZED.get(script, "")
    try:
        # force: no warning about texts with blanks before full stops.
        tokenize = "char" if script in UNSEGMENTED else None
        return BLEU(trg_lang=language, tokenize=tokenize, force=True)
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"sacreBLEU cannot cut '{target}' into words: {reason[:120]}; "
            f"pip install 'sacrebleu[{language}]'"
        ) from None


def metrics(target: str) -> dict[str, Metric]:
    """Return new metrics by name: a metric's signature depends on its last call.

    Raises:
        UserError: sacreBLEU lacks what it needs to cut this language into words.
    """
    return {"bleu": _bleu(target), "chrf": CHRF()}


def _rated(metric: Metric, pairs: Pairs) -> dict[str, Any]:
    several = len(pairs.ids) > 1
    found = metric.corpus_score(
        pairs.hypotheses, [pairs.references], n_bootstrap=RESAMPLES if several else 1
    )
    interval, signature = None, str(metric.get_signature())
    if several:
        # All digits; of a mean of 0 sacreBLEU says nothing.
        said = json.loads(found.format(width=20, signature=signature, is_json=True))
        mean, half = said.get("confidence_mean", 0.0), said.get("confidence_var", 0.0)
        interval = (max(0.0, mean - half), mean + half)
    return {"score": found, "interval": interval, "signature": signature}


def _paired(baseline: Sequence[str], pairs: Pairs, target: str) -> dict[str, dict[str, Any]]:
    """Differences (this run minus the baseline) and sacreBLEU's two-sided p, by metric.

    The p is None where there is nothing to test: one segment, or the same hypotheses twice, for
    which sacreBLEU's formula would give the smallest p of all. sacreBLEU draws no interval of a
    difference; that of equal hypotheses is known.
    """
    found = metrics(target)
    names = {str(metric.corpus_score([""], [[""]]).name): key for key, metric in found.items()}
    systems: list[tuple[str, Sequence[str]]] = [
        ("baseline", baseline),
        ("system", pairs.hypotheses),
    ]
    _, scores = PairedTest(systems, found, [pairs.references], "bs", RESAMPLES)()
    equal = list(baseline) == list(pairs.hypotheses)
    result = {}
    for name, key in names.items():
        before, now = scores[name]
        assert not isinstance(before, str) and not isinstance(now, str)
        result[key] = {
            "difference": float(now.score - before.score),
            "interval": (0.0, 0.0) if equal else None,
            "p": None if equal or len(pairs.ids) < 2 else now.p_value,
        }
    return result


@contextlib.contextmanager
def _fixed_seed() -> Iterator[None]:
    """Fix sacreBLEU's seed, which it reads from the environment only, and mute its log."""
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
