"""Recorded lines with translations: which are kept, and in which set each belongs.

Shared by the data stages of speech translation, most of it by those that make their own splits. A
line's set goes by its English text, so that all its languages fall into one set and no translation
of train is tested.
"""

import argparse
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espnet_ext.data.corpora import corpus
from espnet_ext.data.corpora.corpus import Clip
from espnet_ext.data.corpora.splits import implausible, split_of
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.data.text import normalise_text

_PLACEHOLDER = re.compile(r"%\d")
_SCRIPTS = {"bg": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC"}


@dataclass(frozen=True)
class Line:
    """A recorded line: its clip, the language spoken, and the text that its set goes by."""

    clip: Clip
    language: str
    key: str


def unusable(language: str, text: str) -> str | None:
    """Say why a text cannot be one of a language, or None.

    It has no word, or a place for a number that the game would fill in (``%1``), or most of its
    letters are of another script.
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
    """Return the lines whose texts can be used, each recording once; count the others.

    A sound file that is whole but holds no samples counts as none.
    """
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


def set_of(corpus: str, key: str, name: str) -> str:
    """``train``, ``dev`` or ``test`` for an English text, for a name where it has no words."""
    return split_of(corpus, normalise_text(key) or name)


def divide(
    corpus: str, lines: Sequence[Line], utterances: Sequence[Utterance], count: Counter[str]
) -> dict[str, list[tuple[Line, Utterance]]]:
    """Return train, dev and test.

    Left out, and counted: clips that are too short or too long for their text, and of dev and test
    those whose text or translation, normalised, is one of train too.
    """
    parts: dict[str, list[tuple[Line, Utterance]]] = {"train": [], "dev": [], "test": []}
    for line, utterance in zip(lines, utterances, strict=True):
        if implausible(normalise_text(utterance.text), utterance.seconds):
            count[f"{line.language} implausible"] += 1
        else:
            parts[set_of(corpus, line.key, line.clip.id)].append((line, utterance))
    trained = {key for line, _ in parts["train"] for key in texts_of(line)}
    for part in ("dev", "test"):
        for line, _ in parts[part]:
            count[f"{line.language} {part} by the hash"] += 1
        parts[part] = [pair for pair in parts[part] if not texts_of(pair[0]) & trained]
    return parts


def texts_of(line: Line) -> set[tuple[str, str]]:
    """What is spoken, in whichever language, and the translations, normalised."""
    texts = [("spoken", line.clip.text), *line.clip.translations]
    return {(language, normalise_text(text)) for language, text in texts}


def corpus_parser(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Options of ``corpus.corpus_parser``, and of which language into which."""
    parser = corpus.corpus_parser(doc, folder)
    parser.add_argument("--source", default="en", help="language spoken (default en)")
    parser.add_argument("--target", default="zh-CN", help="language translated into (zh-CN)")
    return parser
