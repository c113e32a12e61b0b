#!/usr/bin/env python3
"""Prepare Speech Commands v0.02: which of 35 words, and which of 12 labels?

Example:
  python local/data.py --corpus speech_commands_v0.02 --out data
  python local/data.py --corpus speech_commands_v0.02 --test_set speech_commands_test_set_v0.02

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/{train,dev,test}   all 35 words: testing_list.txt, validation_list.txt and the rest
  data/w12_{train,dev}    ten words, _unknown_ and _silence_, of the same parts (with --test_set)
  data/w12_test           the official test set of 12 labels, every clip of it

Rules for 12 labels: _unknown_ is a sample of the other 25 words, as many clips as one of the ten
words has on average, those whose names' SHA-256 are least. _silence_ is the background noise cut
into seconds, of each file the first nine tenths for training and the rest for dev. A speaker is the
hash that a file's name begins with. Clips keep their length, mostly one second, some shorter.
"""

import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import soundfile

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.corpora.tables import inside
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_utf8

LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"
SILENCE, UNKNOWN = "_silence_", "_unknown_"
TEN = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
FOLDER = "the folder that holds the words' folders, validation_list.txt and testing_list.txt"

# Of the release v0.02.
COUNTS = {"words": 35, "train": 84843, "dev": 9981, "test": 11005}
TEST_COUNTS = dict(zip(TEN, (419, 405, 425, 406, 412, 396, 396, 402, 411, 402), strict=True))
TEST_COUNTS |= {SILENCE: 408, UNKNOWN: 408}
_NAME = re.compile(r"([0-9a-f]+)_nohash_(\d+)")


def read_list(root: Path, name: str) -> list[str]:
    """Read word/file.wav of a list.

    Raises:
        UserError: an entry twice, or one without its file.
    """
    entries = read_utf8(root / name).split()
    for entry, times in Counter(entries).items():
        if times > 1:
            raise UserError(f"{root / name}: {entry} occurs twice")
        if not inside(root, entry).is_file():
            raise UserError(f"{root / name}: {entry} is not in {root}")
    return entries


def find_words(root: Path) -> list[str]:
    """Return the words: folders whose names begin with neither an underscore nor a dot.

    Raises:
        UserError: one of the ten words is not there.
    """
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] not in "._")
    for word in TEN:
        if word not in found:
            raise UserError(f"{root}: no folder {nearest(word, found)}; --corpus is {FOLDER}")
    return found


def clip_of(path: Path, label: str) -> Clip:
    """Return the clip of a file in a word's folder.

    Raises:
        UserError: a name without a speaker.
    """
    found = _NAME.search(path.stem)
    if found is None:
        raise UserError(f"{path}: expected a name as 0c40e715_nohash_0.wav, which has the speaker")
    speaker = found[1]
    key = f"{speaker}-{path.parent.name}-{path.stem}"
    return Clip(id=key, speaker=speaker, label=label, source=path)


def read_words(root: Path) -> dict[str, list[Clip]]:
    """Return the clips of all words by part.

    Raises:
        UserError: an entry is in both lists, a speaker is in two parts, or what ``read_list`` and
            ``clip_of`` raise.
    """
    part_of: dict[str, str] = {}
    for part, name in LISTS.items():
        for entry in read_list(root, name):
            if part_of.setdefault(entry, part) != part:
                raise UserError(f"{entry} is in both {' and '.join(LISTS.values())}")
    parts: dict[str, list[Clip]] = {"train": [], "dev": [], "test": []}
    owner: dict[str, str] = {}
    for word in find_words(root):
        for path in sorted(p for p in (root / word).glob("*.wav") if p.name[0] != "."):
            part = part_of.get(f"{word}/{path.name}", "train")
            clip = clip_of(path, word)
            if owner.setdefault(clip.speaker, part) != part:
                raise UserError(
                    f"speaker {clip.speaker} is in {owner[clip.speaker]} and {part} ({path}); "
                    "the lists are those of another release"
                )
            parts[part].append(clip)
    return parts


def sample_unknown(clips: list[Clip]) -> list[Clip]:
    """Return the clips of the ten words, and as many others as one of these has on average."""
    known = [clip for clip in clips if clip.label in TEN]
    others = [clip for clip in clips if clip.label not in TEN]
    others.sort(key=lambda clip: hashlib.sha256(clip.id.encode()).hexdigest())
    count = round(len(known) / len(TEN))
    return known + [replace(clip, label=UNKNOWN) for clip in others[:count]]


def cut_noise(root: Path) -> dict[str, list[Clip]]:
    """Cut the background noise into seconds, by part.

    Raises:
        UserError: there is none, or it cannot be decoded.
    """
    files = sorted(p for p in (root / NOISE).glob("*.wav") if p.name[0] != ".")
    if not files:
        raise UserError(f"{root / NOISE}: no background noise in it, which {SILENCE} is made of")
    parts: dict[str, list[Clip]] = {"train": [], "dev": []}
    for path in files:
        try:
            seconds = int(soundfile.info(path).duration)
        except (RuntimeError, OSError):
            raise UserError(f"{path}: cannot decode this audio file") from None
        for start in range(seconds):
            part = "train" if start < 0.9 * seconds else "dev"
            parts[part].append(
                Clip(
                    id=f"noise-{path.stem}-{start:04d}",
                    speaker="noise",
                    label=SILENCE,
                    source=path,
                    start=start,
                    end=start + 1,
                )
            )
    return parts


def read_test_set(root: Path) -> list[Clip]:
    """Read the official test set of 12 labels, a folder each.

    Raises:
        UserError: a label is missing, or there is another.
    """
    labels = (*TEN, SILENCE, UNKNOWN)
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    for label in labels:
        if label not in found:
            raise UserError(f"{root}: no folder {label}; --test_set is the official one, unpacked")
    for name in found:
        if name not in labels:
            raise UserError(
                f"{root}: {name} is none of its 12 labels; --test_set is another folder"
            )
    clips = []
    for label in labels:
        for path in sorted(p for p in (root / label).glob("*.wav") if p.name[0] != "."):
            speaker = "noise" if label == SILENCE else clip_of(path, label).speaker
            # The names of the whole corpus occur again here.
            key = f"{speaker}-test12-{label}-{path.stem}"
            clips.append(Clip(id=key, speaker=speaker, label=label, source=path))
    return clips


def twelve(root: Path, test_set: Path, words: dict[str, list]) -> dict[str, list[Clip]]:
    """Return the sets of the task with 12 labels.

    Raises:
        UserError: what the readers raise, or a speaker of the test set who is in training.
    """
    noise, test = cut_noise(root), read_test_set(test_set)
    sets = {f"w12_{part}": sample_unknown(words[part]) + noise[part] for part in ("train", "dev")}
    trained = {clip.speaker for clip in words["train"]}
    for clip in test:
        if clip.speaker in trained:
            raise UserError(f"{clip.source}: speaker {clip.speaker} is in training as well")
    return {**sets, "w12_test": test}


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    root, test_set = stage.corpus(*LISTS.values()), stage.args.test_set
    if stage.is_current([root / name for name in LISTS.values()], [test_set]):
        return
    sets = read_words(root)
    found = {name: len(clips) for name, clips in sets.items()}
    stage.expect(COUNTS, found | {"words": len(find_words(root))})
    if test_set is None:
        print("no --test_set: the sets of 12 labels are left out")
    elif not Path(test_set).is_dir():
        raise UserError(f"--test_set {test_set}: no such folder")
    else:
        sets |= twelve(root, Path(test_set), sets)
        stage.expect(TEST_COUNTS, Counter(clip.label for clip in sets["w12_test"]))
    stage.write(stage.convert_sets(sets))


if __name__ == "__main__":
    main(
        __doc__,
        prepare,
        corpus=FOLDER,
        add_options=lambda parser: parser.add_argument(
            "--test_set", metavar="DIR", help="the official test set of 12 labels"
        ),
    )
