"""Recognisers and translators that hardly work: what differs between them is evidence of little."""

from espnet_ext.results.claims.base import Evidence
from espnet_ext.results.claims.evidence import GridPair, RunPair
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.store import Results

MOST_WRONG = 0.5  # WER
LEAST_TRANSLATED = 5.0  # BLEU
_LIMITS = {"wer": MOST_WRONG, "bleu": LEAST_TRANSLATED}
_MAIN = {"wer": "wer", "cer": "wer", "bleu": "bleu", "chrf": "bleu"}  # what a limit is of


def doubt_of_texts(item: Evidence, results: Results) -> str:
    """Why two systems are no evidence: at most half of the words are right in either's texts.

    Args:
        item: two systems of a grid, or two runs; anything else is not doubted.
        results: committed results.

    Returns:
        A note; empty if one of the two works, or if they output no text.
    """
    if not isinstance(item, GridPair | RunPair):
        return ""
    if isinstance(item, GridPair) and item.record(results).classes is not None:
        return ""  # before its permutation test, which the claim has made already
    key = _MAIN.get(item.compared(results).comparison.metric)
    if key is None:
        return ""
    kind, limit = METRICS[key], _LIMITS[key]
    found = item.model_copy(update={"metric": key}).compared(results)
    if any(kind.direction * (value - limit) >= 0 for value in (found.of, found.than)):
        return ""
    least = " ".join(filter(None, (kind.number(limit), kind.unit)))
    side = "below" if kind.direction > 0 else "above"
    return f"; both have a {kind.name} {side} {least}"
