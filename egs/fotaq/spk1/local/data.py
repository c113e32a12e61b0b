#!/usr/bin/env python3
"""Prepare the characters of "Flight of the Amazon Queen": who speaks this line?

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package flight-of-the-amazon-queen_1.0.0-9_all.deb

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all                60 clips of each of the 25 characters that have so many
  data/{train,dev,test}   by a hash of the text: 70, 10 and 20 %; no text is in two of them
  data/text-K/{train,dev,test}   five folds by the same hash: test K, dev the next, the rest

Rules: the clips of egs/fotaq/asr1 (voices only, with text, of a plausible length; a text that is
only an aside is none), byte-for-byte copies left out; of each character with at least 60 clips the
60 whose names' SHA-256 are least.
"""

import argparse
import hashlib

from espnet_ext.data import text
from espnet_ext.data.corpora import queen, splits
from espnet_ext.data.corpora.clips import Clip, read_span
from espnet_ext.data.corpora.folds import Folds
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.errors import UserError, at_least

CORPUS = "fotaq-spk"  # seeds the hash of the splits
EACH = 60
FOLDS = 5

# What the pinned package gives.
COUNTS = {"characters": 25, "all": 1500}
BYTES_PER_SECOND = 2000  # of the game's MP3


def choose(container: queen.Container, each: int) -> list[Clip]:
    """Apply the rules; return the clips of all characters."""
    by_voice: dict[str, list[queen.Sentence]] = {}
    seen: set[bytes] = set()
    for sentence in queen.read_sentences(container):
        spoken = text.normalise_text(sentence.text)
        if not sentence.is_voice or not spoken:
            continue
        if splits.implausible(spoken, sentence.span[1] / BYTES_PER_SECOND) is not None:
            continue
        digest = hashlib.sha256(read_span(container.path, *sentence.span)).digest()
        if digest in seen:
            continue
        seen.add(digest)
        by_voice.setdefault(sentence.voice, []).append(sentence)
    chosen: list[queen.Sentence] = []
    for found in by_voice.values():
        if len(found) >= each:
            found.sort(key=lambda sentence: hashlib.sha256(sentence.name.encode()).hexdigest())
            chosen += found[:each]
    return [
        Clip(
            id=f"{sentence.voice}-{sentence.name.lower()}",
            speaker=sentence.voice,
            label=sentence.voice,
            text=text.normalise_text(sentence.text),
            source=container.path,
            span=sentence.span,
        )
        for sentence in chosen
    ]


def fold_of(spoken: str) -> int:
    """Return the fold of a text, 0 to 4, the same on every machine."""
    digest = hashlib.sha1(f"{CORPUS}|{spoken}".encode(), usedforsecurity=False).hexdigest()
    return int(digest[:8], 16) * FOLDS // 2**32


def arrange(utterances: list[Utterance]) -> tuple[dict[str, list[Utterance]], Folds]:
    """Return the sets and the folds."""
    sets: dict[str, list[Utterance]] = {"all": utterances, "train": [], "dev": [], "test": []}
    folds: dict[str, dict[str, list[Utterance]]] = {}
    for number in range(FOLDS):
        folds[str(number + 1)] = {"train": [], "dev": [], "test": []}
    for item in utterances:
        sets[splits.split_of(CORPUS, item.text, test=0.2, dev=0.1)].append(item)
        own = fold_of(item.text)
        for number in range(FOLDS):
            parts = {number: "test", (number + 1) % FOLDS: "dev"}
            folds[str(number + 1)][parts.get(own, "train")].append(item)
    return sets, folds


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    each = stage.args.each
    if stage.is_current(settings=[each]):
        return
    container = queen.open_container(stage)
    clips = choose(container, each)
    if not clips:
        raise UserError(f"{container.path}: no character has {each} clips")
    stage.expect(COUNTS, {"characters": len({c.speaker for c in clips}), "all": len(clips)})
    sets, folds = arrange(stage.convert(clips))
    stage.write(sets, {"text": folds}, disjoint="text")


if __name__ == "__main__":
    main(
        __doc__,
        prepare,
        packages=[queen.PACKAGE],
        add_options=lambda parser: parser.add_argument(
            "--each", type=at_least(1), default=EACH, help=argparse.SUPPRESS
        ),
    )
