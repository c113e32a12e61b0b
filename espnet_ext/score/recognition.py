"""The score of one set: rates, intervals, counts and the paired test, as one plain mapping."""

from collections.abc import Sequence
from typing import Any

from espnet_ext.data.text import NORMALISATION
from espnet_ext.score.pairs import Pairs
from espnet_ext.score.significance.bootstrap import (
    RESAMPLES,
    SEED,
    bootstrap_interval,
    paired_difference,
)
from espnet_ext.score.significance.mapsswe import mapsswe
from espnet_ext.score.wer import Aligned, Errors, align_characters, align_words


def score_set(
    pairs: Pairs, set_name: str, method: str, baseline_tag: str | None = None
) -> tuple[dict[str, Any], Aligned]:
    """Score one set.

    Args:
        pairs: the normalised texts.
        set_name: name of the set, for the record.
        method: how the hypotheses were decoded, for the record.
        baseline_tag: what ``pairs.baseline`` came from; needed if that is given.

    Returns:
        The content of a score file (``report.schema.SCORE`` describes it; rates are
        fractions), and the alignment of the words.
    """
    words = align_words(pairs.references, pairs.hypotheses)
    characters = align_characters(pairs.references, pairs.hypotheses)
    score = {
        "set": set_name,
        "method": method,
        "normalisation": NORMALISATION,
        "utterances": len(pairs.ids),
        "speakers": None if pairs.speakers is None else len(set(pairs.speakers)),
        "words": int(words.errors.lengths.sum()),
        "characters": int(characters.errors.lengths.sum()),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": 0.95},
        "wer": _rate(words.errors, pairs.speakers),
        "cer": _rate(characters.errors, pairs.speakers),
        "baseline": None,
    }
    if pairs.baseline is not None:
        tested = mapsswe(pairs.references, pairs.baseline, pairs.hypotheses)
        score["baseline"] = {
            "tag": baseline_tag,
            **_compare("wer", align_words, pairs, words.errors),
            **_compare("cer", align_characters, pairs, characters.errors),
            "mapsswe": {"segments": tested.segments, "z": tested.z, "p": tested.p},
        }
    return score, words


def _rate(errors: Errors, speakers: Sequence[str] | None) -> dict[str, Any]:
    by_speaker = None
    if speakers is not None:
        by_speaker = bootstrap_interval(errors.totals, errors.lengths, speakers)
    return {
        "value": errors.rate,
        "interval": _listed(bootstrap_interval(errors.totals, errors.lengths)),
        "interval_by_speaker": _listed(by_speaker),
        "substitutions": int(errors.substitutions.sum()),
        "insertions": int(errors.insertions.sum()),
        "deletions": int(errors.deletions.sum()),
    }


def _compare(metric: str, align: Any, pairs: Pairs, errors: Errors) -> dict[str, Any]:
    baseline = align(pairs.references, pairs.baseline).errors
    found = paired_difference(baseline.totals, errors.totals, errors.lengths)
    by_speaker = None
    if pairs.speakers is not None:
        by_speaker = paired_difference(
            baseline.totals, errors.totals, errors.lengths, pairs.speakers
        )
    prefix = "" if metric == "wer" else f"{metric}_"
    return {
        f"{metric}_difference": errors.rate - baseline.rate,
        f"{prefix}interval": None if found is None else list(found.interval),
        f"{prefix}interval_by_speaker": (None if by_speaker is None else list(by_speaker.interval)),
        f"{prefix}p": None if found is None else found.p,
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
