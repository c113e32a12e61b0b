"""Recorded lines with translations: which can be used, and to which set each belongs.

For corpora without official splits. The set of a line is chosen by its English text, so that all
its languages are in one set and no translation of train is tested.
"""

import argparse
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.splits import implausible, split_of
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError, nearest

_PLACEHOLDER = re.compile(r"%\d")
_SCRIPTS = {"bg": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC"}


@dataclass(frozen=True)
class Line:
    """A recorded line."""

    clip: Clip
    language: str  # spoken
    key: str  # English text, by which its set is chosen


def unusable(language: str, text: str) -> str | None:
    """Return why a text cannot be one of a language, or None.

    It has no word, or a placeholder for a number (``%1``), or most of its letters are of another
    script.
    """
    if not normalise_text(text):
        return "no words"
    if _PLACEHOLDER.search(text):
        return "placeholder"
    script = _SCRIPTS.get(language, "LATIN")
    letters = [unicodedata.name(c, "") for c in text if c.isalpha()]
    if 2 * sum(name.startswith(script) for name in letters) < len(letters):
        return "other script"
    return None


def keep(lines: Iterable[Line], count: Counter[str]) -> list[Line]:
    """Return the lines whose texts and audio can be used, each recording once; count the others."""
    from espnet_ext.data.audio import has_no_samples

    kept, seen = [], set()
    for line in lines:
        texts = [(line.language, line.clip.text), *line.clip.translations]
        reasons = [reason for pair in texts if (reason := unusable(*pair))]
        if reasons:
            count[f"{line.language} {reasons[0]}"] += 1
            continue
        if has_no_samples(line.clip.source):
            count[f"{line.language} no samples"] += 1
            continue
        digest = hashlib.sha256(line.clip.source.read_bytes()).digest()
        if digest in seen:
            count[f"{line.language} copies"] += 1
            continue
        seen.add(digest)
        kept.append(line)
    return kept


def divide(
    corpus: str, lines: Sequence[Line], utterances: Sequence[Utterance], count: Counter[str]
) -> dict[str, list[tuple[Line, Utterance]]]:
    """Return train, dev and test.

    Clips that are too short or too long for their text are left out, and those of dev and test
    whose normalised text or translation is in train.
    """
    parts: dict[str, list[tuple[Line, Utterance]]] = {"train": [], "dev": [], "test": []}
    for line, utterance in zip(lines, utterances, strict=True):
        if implausible(normalise_text(utterance.text), utterance.seconds):
            count[f"{line.language} implausible"] += 1
        else:
            key = normalise_text(line.key) or line.clip.id
            parts[split_of(corpus, key)].append((line, utterance))
    trained = {key for line, _ in parts["train"] for key in texts_of(line)}
    for part in ("dev", "test"):
        for line, _ in parts[part]:
            count[f"{line.language} {part} by the hash"] += 1
        parts[part] = [pair for pair in parts[part] if not texts_of(pair[0]) & trained]
    return parts


def texts_of(line: Line) -> set[tuple[str, str]]:
    """Return what is spoken, in whichever language, and the translations, normalised."""
    texts = [("spoken", line.clip.text), *line.clip.translations]
    return {(language, normalise_text(text)) for language, text in texts}


def add_languages(parser: argparse.ArgumentParser) -> None:
    """Add the options of which language into which."""
    parser.add_argument("--source", default="en", help="language spoken (default en)")
    parser.add_argument("--target", default="zh-CN", help="language translated into (zh-CN)")


def known_targets(words: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return the languages that the option --targets names, each once.

    Raises:
        UserError: none, or one that is not known.
    """
    targets, known = tuple(dict.fromkeys(words.split())), list(known)
    for target in targets:
        if target not in known:
            raise UserError(f"--targets: no language {nearest(target, known)}")
    if not targets:
        raise UserError("--targets is empty; name languages, as in --targets 'en de'")
    return targets


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add the option --targets."""
    parser.add_argument("--targets", default="en", help="languages to translate into (default en)")
