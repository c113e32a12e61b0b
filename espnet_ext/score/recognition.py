"""The score of recognition of one set: error rates, intervals, counts and the paired test."""

from collections.abc import Callable, Sequence
from typing import Any

from espnet_ext.data.text import NORMALISATION
from espnet_ext.score.pairs import Pairs
from espnet_ext.score.significance.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    block_size,
    bootstrap_interval,
    paired_difference,
)
from espnet_ext.score.significance.mapsswe import mapsswe
from espnet_ext.score.wer import (
    Aligned,
    Errors,
    align_characters,
    align_words,
    count_errors,
)


def score_set(
    pairs: Pairs,
    set_name: str,
    method: str,
    seen: Callable[[int, Aligned], None] | None = None,
) -> dict[str, Any]:
    """Score one set.

    Args:
        pairs: the normalised texts.
        set_name: name of the set, for the record.
        method: the decoding method, for the record.
        seen: see ``count_errors``, of the alignment of words.

    Returns:
        The score, as ``results.schema.RecognitionScore`` has it (rates are fractions).
    """
    words = count_errors(align_words, pairs.references, pairs.hypotheses, seen)
    characters = count_errors(align_characters, pairs.references, pairs.hypotheses)
    score: dict[str, Any] = {
        "task": "asr",
        "set": set_name,
        "method": method,
        "speakers": None if pairs.speakers is None else len(set(pairs.speakers)),
        "bootstrap": {
            "resamples": RESAMPLES,
            "seed": SEED,
            "confidence": CONFIDENCE,
            "block": block_size(len(pairs.ids)),
        },
        "metrics": {
            "wer": _value(words, pairs.speakers),
            "cer": _value(characters, pairs.speakers),
        },
        "comparisons": [],
        "normalisation": NORMALISATION,
        "utterances": len(pairs.ids),
        "words": int(words.lengths.sum()),
        "characters": int(characters.lengths.sum()),
        "errors": {"wer": _counts(words), "cer": _counts(characters)},
    }
    for name, baseline in pairs.baselines.items():
        tested = mapsswe(pairs.references, baseline, pairs.hypotheses)
        compared = {
            "wer": _difference(align_words, pairs, words, baseline)
            | {"mapsswe": {"segments": tested.segments, "z": tested.z, "p": tested.p}},
            "cer": _difference(align_characters, pairs, characters, baseline),
        }
        score["comparisons"] += [
            {"metric": metric, "baseline": name, "speakers": score["speakers"], **found}
            for metric, found in compared.items()
        ]
    return score


def _value(errors: Errors, speakers: Sequence[str] | None) -> dict[str, Any]:
    by_speaker = None
    if speakers is not None:
        by_speaker = bootstrap_interval(errors.totals, errors.lengths, speakers)
    return {
        "value": errors.rate,
        "interval": bootstrap_interval(errors.totals, errors.lengths),
        "by_speaker": by_speaker,
    }


def _counts(errors: Errors) -> dict[str, int]:
    return {
        "substitutions": int(errors.substitutions.sum()),
        "insertions": int(errors.insertions.sum()),
        "deletions": int(errors.deletions.sum()),
    }


def _difference(
    align: Callable[[Sequence[str], Sequence[str]], Aligned],
    pairs: Pairs,
    errors: Errors,
    baseline: Sequence[str],
) -> dict[str, Any]:
    """The difference to a baseline on the same draws; negative if this run is better."""
    before = count_errors(align, pairs.references, baseline)
    found = paired_difference(before.totals, errors.totals, errors.lengths)
    by_speaker = None
    if pairs.speakers is not None:
        by_speaker = paired_difference(before.totals, errors.totals, errors.lengths, pairs.speakers)
    return {
        "difference": errors.rate - before.rate,
        "interval": None if found is None else found.interval,
        "p": None if found is None else found.p,
        "by_speaker": None if by_speaker is None else by_speaker.interval,
    }
