#!/usr/bin/env python3
"""Prepare the speech of the game "Flight of the Amazon Queen" as Kaldi data directories.

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package flight-of-the-amazon-queen_1.0.0-9_all.deb

Writes 16 kHz mono FLAC to data/audio and the sets data/{train,dev,test,unseen}.

Rules, in this order (espnet_ext/data/corpora/splits.py has the limits):
  1. Clips without text are left out (158), and those whose text is nothing but an aside such as
     "(sigh)" (14).
  2. Speakers lou, henry, naomi, chef and lola are the set unseen; the others are in train, dev or
     test by a hash of the normalised text, so no text is in two of them.
  3. Too short or long for the text, or in itself: left out (7).
  4. Of unseen, texts that train has too are left out (72 of 393).
  5. Of train, clips that are byte for byte a clip of dev, test or unseen are left out (1, whose
     two texts differ by a typing error). Copies within one set stay.
The text written is normalised: lower case, letters and apostrophes; digits are spelt out by the
table SPOKEN, after the hash; a line with a digit that is not in the table is left out.
This leaves train 5,249, dev 345, test 578, unseen 321. Before rules 4 and 5 the counts are
5,250, 345, 578 and 393, as others have counted these sets. Their minutes are 218.0, 13.2, 24.9
and 16.3; ours, from the decoded samples, 216.9, 13.2, 24.8 and 16.2, which is what the clips'
bytes give at 16 kbit/s. Why theirs are 0.5 % longer is not known.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data import text
from espnet_ext.data.corpora import queen, splits
from espnet_ext.data.corpora.clips import Clip, read_span, remove_others
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.errors import at_least

CORPUS = "fotaq"  # seeds the hash of the splits
SETS = ("train", "dev", "test", "unseen")
UNSEEN = frozenset(("lou", "henry", "naomi", "chef", "lola"))

# What the pinned package holds; anything else means that a reader or a rule was changed.
CONTENTS = {"files": 7671, "clips": 6745, "cut scenes": 301, "with text": 6587}
BY_RULES = {"train": 5250, "dev": 345, "test": 578, "unseen": 393}  # before rules 4 and 5
WRITTEN = {"train": 5249, "dev": 345, "test": 578, "unseen": 321}

SPOKEN = {
    "00": "hundred",
    "100": "a hundred",
    "13th": "thirteenth",
    "1844": "eighteen forty four",
    "19": "nineteen",
    "1922": "nineteen twenty two",
    "1940's": "nineteen forties",
    "1948": "nineteen forty eight",
    "24": "twenty four",
    "26": "twenty six",
    "2b": "two b",
    "50": "fifty",
    "x7": "x seven",
}


@dataclass(frozen=True)
class Candidate:
    """A clip that rules 1 and 2 keep."""

    clip: Clip
    part: str  # its set
    key: str  # normalised text, digits as they are


def spell_out(key: str) -> str | None:
    """Return a normalised text with its digits spelt out; None if SPOKEN does not have them."""
    words = [SPOKEN.get(word, word) for word in key.split()]
    if any(char.isdigit() for word in words for char in word):
        return None
    return " ".join(words)


def choose(sentences: Sequence[queen.Sentence], container: Path) -> list[Candidate]:
    """Apply rules 1 and 2."""
    candidates = []
    for sentence in sentences:
        key = text.normalise_text(sentence.text)
        spoken = spell_out(key)
        if not spoken:
            continue
        speaker = sentence.voice
        part = "unseen" if speaker in UNSEEN else splits.split_of(CORPUS, key)
        clip = Clip(
            id=f"{speaker}-{sentence.name}",
            speaker=speaker,
            text=spoken,
            source=container,
            span=sentence.span,
            rate=queen.SAMPLE_RATE,
        )
        candidates.append(Candidate(clip, part, key))
    return candidates


def limit_sets(candidates: Sequence[Candidate], limit: int) -> list[Candidate]:
    """Keep at most ``limit`` candidates a set, chosen by a hash."""
    count: Counter[str] = Counter()
    chosen = []
    for item in sorted(candidates, key=lambda c: hashlib.sha256(c.clip.id.encode()).digest()):
        count[item.part] += 1
        if count[item.part] <= limit:
            chosen.append(item)
    return chosen


def assemble(
    candidates: Sequence[Candidate], utterances: Sequence[Utterance], trained: set[str]
) -> tuple[dict[str, list[Utterance]], Counter[str]]:
    """Apply rules 3 to 5; return the utterances of each set, and the counts before rules 4 and 5.

    ``trained`` are the texts of train, with those that --limit leaves out.
    """
    kept = [
        (c.part, u, hashlib.sha256(read_span(c.clip.source, *c.clip.span or (0, 0))).digest())
        for c, u in zip(candidates, utterances, strict=True)
        if splits.implausible(c.key, u.seconds) is None
    ]
    held_out = {digest for part, _, digest in kept if part != "train"}
    sets: dict[str, list[Utterance]] = {name: [] for name in SETS}
    for part, utterance, digest in kept:
        if part == "unseen" and utterance.text in trained:
            continue
        if part == "train" and digest in held_out:
            continue
        sets[part].append(utterance)
    return sets, Counter(part for part, _, _ in kept)


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    limit = stage.args.limit
    if stage.is_current(settings=[limit]):
        return
    container = queen.open_container(stage)
    sentences = queen.read_sentences(container)
    counts = {f: len(container.names(s)) for f, s in (("clips", ".SB"), ("cut scenes", ".CUT"))}
    counts |= {"files": len(container.entries), "with text": len(sentences)}
    stage.expect(CONTENTS, counts)
    candidates = choose(sentences, container.path)
    trained = {c.clip.text for c in candidates if c.part == "train"}
    if limit is not None:
        candidates = limit_sets(candidates, limit)
    utterances = stage.convert([c.clip for c in candidates], keep_others=limit is not None)
    sets, by_rules = assemble(candidates, utterances, trained)
    if limit is None:
        stage.expect(BY_RULES, by_rules)
        stage.expect(WRITTEN, {name: len(items) for name, items in sets.items()})
        remove_others(stage.audio, {Path(u.audio) for items in sets.values() for u in items})
    stage.write(sets)


if __name__ == "__main__":
    main(
        __doc__,
        prepare,
        packages=[queen.PACKAGE],
        add_options=lambda parser: parser.add_argument(
            "--limit", type=at_least(1), help="at most so many utterances a set: a trial"
        ),
    )
