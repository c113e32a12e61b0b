"""References and hypotheses of one set, read from Kaldi tables and paired by utterance id."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """Normalised texts of one set; all lists have one item per utterance, sorted by id.

    Attributes:
        baselines: hypotheses of the runs that are compared with, by their names.
    """

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    speakers: list[str] | None = None
    baselines: Mapping[str, list[str]] = field(default_factory=dict)


def split_baseline(named: str, is_run: Callable[[str], bool]) -> tuple[str, str]:
    """Split TAG or TAG/VARIANT into both; the variant is empty if none is named.

    A tag may have slashes too, so ``is_run`` says what is the tag of a run.
    """
    tag, _, variant = named.rpartition("/")
    return (named, "") if not tag or is_run(named) else (tag, variant)


def baseline_variant(decoded: Collection[str], variant: str, named: str) -> str | None:
    """Choose the variant of a baseline to compare with.

    Args:
        decoded: variants of the baseline that were decoded.
        variant: of the run.
        named: requested one, of TAG/VARIANT; empty if none was.

    Returns:
        The named one, or else that of the run, ``merged``, or the only one; None if there is
        none.
    """
    for name in (named,) if named else (variant, "merged"):
        if name in decoded:
            return name
    return next(iter(decoded)) if len(decoded) == 1 and not named else None


def read_pairs(
    reference: str | os.PathLike,
    hypothesis: str | os.PathLike,
    utt2spk: str | os.PathLike | None = None,
    baselines: Mapping[str, str | os.PathLike] | None = None,
    normalise: Callable[[str], str] = normalise_text,
    noun: str = "hypothesis",
) -> Pairs:
    """Read, check and normalise the texts, or the classes, of one set.

    Every reference needs exactly one hypothesis, a speaker if ``utt2spk`` is given, and a
    hypothesis of each of ``baselines``. A hypothesis may be empty. ``noun`` names one in messages.

    Raises:
        UserError: a file or an utterance is missing, unknown or duplicate, or a reference is
            empty once normalised.
    """
    table = read_table(reference)
    if not table:
        raise UserError(f"{reference}: no utterance in it; make it again (stage 1)")
    ids = sorted(table)
    references = [normalise(table[name]) for name in ids]
    del table  # a million texts need not be there twice
    empty = [name for name, text in zip(ids, references, strict=True) if not text]
    if empty:
        raise UserError(
            f"{reference}: {_some(empty)} without words once normalised; "
            "a score needs words, so drop such utterances (stage 1 does)"
        )
    speakers = None
    if utt2spk is not None:
        of_speaker = read_table(utt2spk)
        missing = [name for name in ids if not of_speaker.get(name)]
        if missing:
            raise UserError(f"{utt2spk}: no speaker for {_some(missing)} of {reference}")
        speakers = [of_speaker[name] for name in ids]

    def hypotheses(path: str | os.PathLike) -> list[str]:
        found = read_table(path)
        missing = [name for name in ids if name not in found]
        if missing:
            raise UserError(
                f"{path}: no {noun} for {_some(missing)} of {reference}; "
                "decode that set again (stage 6)"
            )
        extra = sorted(set(found).difference(ids))
        if extra:
            raise UserError(
                f"{path}: {_some(extra)} not in {reference}; "
                "both must be of the same set: decode it again (stage 6)"
            )
        return [normalise(found[name]) for name in ids]

    compared = {name: hypotheses(path) for name, path in (baselines or {}).items()}
    return Pairs(ids, references, hypotheses(hypothesis), speakers, compared)


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"utterance {names[0]}"
    return f"{len(names)} utterances ({names[0]} is the first)"
