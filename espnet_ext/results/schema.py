"""What a score file and a result file hold, and a strict check of it.

A key that is missing or unknown is an error that names it. A number that was not measured is
the string ``not measured``, never a guess, null or 0.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_json

NOT_MEASURED = "not measured"
SCHEMA_VERSION = 2

Check = Callable[[Any, str], None]


class _SchemaError(Exception):
    """A value does not fit; the text names where and why."""


def validate(value: Any, check: Check, source: str) -> None:
    """Check ``value``, read from or meant for ``source``.

    Raises:
        UserError: one line that names the first key that does not fit.
    """
    try:
        check(value, "")
    except _SchemaError as error:
        raise UserError(f"{source}: {error}") from None


def read_validated(path: Path, check: Check, again: str) -> Any:
    """Read a JSON file and check it.

    Args:
        path: the file.
        check: what it must fit.
        again: what to do about a file that is damaged, for the message.

    Raises:
        UserError: the file is not JSON or does not fit.
    """
    try:
        value = read_json(path)
    except ValueError:
        raise UserError(f"{path}: not valid JSON; {again}") from None
    validate(value, check, str(path))
    return value


def number(value: Any, where: str) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _SchemaError(f"{where} must be a finite number, not {value!r}")


def count(value: Any, where: str) -> None:
    """A whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _SchemaError(f"{where} must be a whole number, 0 or more, not {value!r}")


def text(value: Any, where: str) -> None:
    """A string with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise _SchemaError(f"{where} must be a text that is not empty, not {value!r}")


def interval(value: Any, where: str) -> None:
    """Two numbers in order."""
    if not isinstance(value, list) or len(value) != 2:
        raise _SchemaError(f"{where} must be [low, high], not {value!r}")
    for item in value:
        number(item, where)
    if value[0] > value[1]:
        raise _SchemaError(f"{where} must have its low end first, not {value!r}")


def plain(value: Any, where: str) -> None:
    """Anything that JSON holds, with finite numbers: a config or a machine's description."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _SchemaError(f"{where} has the key {key!r}, which is not a string")
            plain(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            plain(item, where)
    elif isinstance(value, float):
        number(value, where)
    elif not isinstance(value, str | int | None):
        raise _SchemaError(f"{where} holds {value!r}, which JSON cannot")


def measured(check: Check) -> Check:
    """What ``check`` allows, or NOT_MEASURED."""

    def inner(value: Any, where: str) -> None:
        if value == NOT_MEASURED:
            return
        try:
            check(value, where)
        except _SchemaError as error:
            raise _SchemaError(f"{error} (or '{NOT_MEASURED}')") from None

    return inner


def optional(check: Check) -> Check:
    """What ``check`` allows, or null where the value has no meaning."""

    def inner(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return inner


class later:  # noqa: N801  # one of the checks, which are functions
    """What ``check`` allows; a file that was written before there was this key lacks it."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def __call__(self, value: Any, where: str) -> None:
        self._check(value, where)


def mapping(**keys: Check) -> Check:
    """A mapping with exactly these keys, but for those that came later."""

    def inner(value: Any, where: str) -> None:
        _require_mapping(value, where)
        for key in value:
            if key not in keys:
                raise _SchemaError(f"unknown key {nearest(str(key), keys)} in {where or 'it'}")
        for key, check in keys.items():
            path = f"{where}.{key}" if where else key
            if key in value:
                check(value[key], path)
            elif not isinstance(check, later):
                raise _SchemaError(f"missing key {path}")

    return inner


def named(check: Check) -> Check:
    """A mapping with at least one key, all values of one kind."""

    def inner(value: Any, where: str) -> None:
        _require_mapping(value, where)
        if not value:
            raise _SchemaError(f"{where} is empty")
        for key, item in value.items():
            check(item, f"{where}.{key}")

    return inner


def items(check: Check) -> Check:
    """A list with at least one item, all of one kind."""

    def inner(value: Any, where: str) -> None:
        if not isinstance(value, list) or not value:
            raise _SchemaError(f"{where} must be a list with something in it, not {value!r}")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return inner


def _require_mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise _SchemaError(f"{where or 'it'} must be keys and values, not {value!r}")


_RATE = mapping(
    value=number,
    interval=optional(interval),  # null: one utterance, nothing to draw from
    interval_by_speaker=optional(interval),  # null: one speaker, or none known
    substitutions=count,
    insertions=count,
    deletions=count,
)

_SCORE: dict[str, Check] = {
    "set": text,
    "method": text,
    "normalisation": text,
    "utterances": count,
    "speakers": optional(count),
    "words": count,
    "characters": count,
    "bootstrap": mapping(resamples=count, seed=count, confidence=number),
    "wer": _RATE,
    "cer": _RATE,
    "baseline": optional(
        mapping(
            tag=text,
            wer_difference=number,  # this run minus the baseline: negative is better
            interval=optional(interval),
            interval_by_speaker=optional(interval),
            p=optional(number),
            # Of words, as NIST's sc_stats; null: nothing to test.
            mapsswe=later(mapping(segments=count, z=optional(number), p=optional(number))),
            cer_difference=number,
            cer_interval=optional(interval),
            cer_interval_by_speaker=optional(interval),
            cer_p=optional(number),
        )
    ),
}
SCORE = mapping(**_SCORE)
# As stage 7 writes it: with the SHA-256 of each file that was read.
SCORE_FILE = mapping(**_SCORE, inputs=named(text))

_CLASS_SCORE: dict[str, Check] = {
    "set": text,
    "method": text,
    "unit": text,  # utterance, or speaker where they vote
    "decisions": count,
    "speakers": count,
    "classes": items(text),
    "bootstrap": mapping(resamples=count, seed=count, confidence=number),
    "weighted_f1": number,
    "interval": optional(interval),  # of weighted_f1; null: one decision
    "interval_by_speaker": optional(interval),  # null: one speaker, or speakers are the unit
    "unweighted_accuracy": number,
    "accuracy": number,
    "majority": mapping(**{"class": text, "weighted_f1": number}),
    "per_class": named(mapping(f1=number, precision=number, recall=number, support=count)),
    "confusion": items(items(count)),  # rows: references
    "baseline": optional(
        mapping(
            tag=text,
            difference=number,  # of weighted_f1, this run minus the baseline: positive is better
            interval=optional(interval),
            interval_by_speaker=optional(interval),
            p=optional(number),
        )
    ),
}
CLASS_SCORE = mapping(**_CLASS_SCORE)
CLASS_SCORE_FILE = mapping(**_CLASS_SCORE, inputs=named(text))


_TRANSLATION_SCORE: dict[str, Check] = {
    "set": text,
    "method": text,
    "target": text,  # language
    "utterances": count,
    "speakers": optional(count),
    "words": count,  # of the references, cut at blanks
    "bootstrap": mapping(resamples=count, seed=count, confidence=number),
    "bleu": mapping(
        value=number,  # 0 to 100, as chrF is
        interval=optional(interval),  # null: one utterance
        brevity_penalty=number,
        precisions=items(number),
        signature=text,
    ),
    "chrf": mapping(value=number, interval=optional(interval), signature=text),
    "baseline": optional(
        mapping(
            tag=text,
            bleu_difference=number,  # this run minus the baseline: positive is better
            bleu_p=optional(number),  # null: one utterance, or the same hypotheses
            chrf_difference=number,
            chrf_p=optional(number),
        )
    ),
}
TRANSLATION_SCORE = mapping(**_TRANSLATION_SCORE)
TRANSLATION_SCORE_FILE = mapping(**_TRANSLATION_SCORE, inputs=named(text))


def any_score(value: Any, where: str) -> None:
    """A score of recognition, translation or classification, told apart by its metric."""
    _require_mapping(value, where)
    if "bleu" in value:
        TRANSLATION_SCORE(value, where)
    else:
        (CLASS_SCORE if "weighted_f1" in value else SCORE)(value, where)


def any_score_file(value: Any, where: str) -> None:
    """Any of them as stage 7 writes it."""
    _require_mapping(value, where)
    if "bleu" in value:
        TRANSLATION_SCORE_FILE(value, where)
    else:
        (CLASS_SCORE_FILE if "weighted_f1" in value else SCORE_FILE)(value, where)


RESULT = mapping(
    schema=count,
    dataset=text,
    task=text,
    tag=text,
    variant=text,
    checkpoint=measured(text),  # the file that was deployed
    encoder=text,
    config_path=text,
    command=text,
    commit=text,
    seed=measured(count),
    versions=measured(named(text)),
    machine=measured(named(plain)),
    parameters=measured(named(count)),  # of the deployed model, by part
    bytes=measured(count),  # of the deployed model's file
    macs_per_second=measured(number),  # multiply-accumulates per second of audio
    training=mapping(
        seconds=measured(number),
        epochs=measured(count),
        peak_rss_mb=measured(number),
        device=measured(text),
        threads=measured(count),
        dtype=measured(text),
        average=measured(mapping(file=text, epochs=items(count))),  # which epochs ESPnet averaged
        parameters=measured(named(count)),  # of the training form
    ),
    decoding=items(
        mapping(
            method=text,
            set=text,
            rtf=measured(number),  # seconds of work per second of audio, in the median round
            rtf_rounds=measured(items(number)),
            rtf_utterances=measured(count),
            audio_seconds=measured(number),
            utterances=measured(count),
            peak_rss_mb=measured(number),
            threads=measured(count),
            device=measured(text),
        )
    ),
    scores=items(any_score),
    config=named(plain),
)
