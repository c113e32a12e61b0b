#!/usr/bin/env python3
"""Prepare LibriSpeech with its 100 clean hours of training (Panayotov et al., ICASSP 2015).

Example:
  python local/data.py --corpus /data/LibriSpeech --out data

Writes data/train (train-clean-100), data/dev (dev-clean and dev-other together, for the choice of
epochs), data/test_clean and data/test_other: the official subsets. FLAC files are read where they
are. A speaker is a reader's chapter, as in Kaldi's recipe; texts are in lower case.
"""

from collections.abc import Iterator
from pathlib import Path

import soundfile
from tqdm import tqdm

from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.kaldi_dir import Utterance, read_table
from espnet_ext.data.processes import map_processes
from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8

FOLDER = "the folder LibriSpeech, which holds SPEAKERS.TXT and train-clean-100 (openslr.org/12)"
SETS = {
    "train": ("train-clean-100",),
    "dev": ("dev-clean", "dev-other"),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}
# Utterances that the corpus is published with.
COUNTS = {
    "train-clean-100": 28539,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}


def read_speakers(path: Path) -> dict[str, str]:
    """Read SPEAKERS.TXT: the subset of every reader.

    Raises:
        UserError: a line has not five columns.
    """
    found = {}
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if not line.strip() or line.startswith(";"):
            continue
        columns = [column.strip() for column in line.split("|")]
        if len(columns) < 5:
            raise UserError(f"{path}: line {number} has {len(columns)} columns, expected 5")
        found[columns[0]] = columns[2]
    return found


def chapters(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield <reader>-<chapter> and its folder, in order.

    Raises:
        UserError: a folder is not named by a number.
    """
    for reader in sorted(path for path in folder.iterdir() if path.is_dir()):
        for chapter in sorted(path for path in reader.iterdir() if path.is_dir()):
            for path in (reader, chapter):
                if not path.name.isdecimal():
                    raise UserError(f"{path}: readers and chapters have numbers, not names")
            yield f"{reader.name}-{chapter.name}", chapter


def read_chapter(task: tuple[str, Path]) -> list[Utterance]:
    """Read the transcripts of a chapter and the lengths of its audio.

    Raises:
        UserError: audio and transcripts do not pair, an empty transcript, or undecodable audio.
    """
    speaker, folder = task
    listed = folder / f"{speaker}.trans.txt"
    texts = read_table(listed)
    audio = {path.stem: path for path in folder.glob("*.flac") if not path.name.startswith(".")}
    for name in sorted(texts.keys() ^ audio.keys()):
        lacks = "no audio file for" if name in texts else f"{listed.name} has no line for"
        raise UserError(f"{folder}: {lacks} {name}")
    found = []
    for name, path in sorted(audio.items()):
        text = normalise_text(texts[name])
        if not text:
            raise UserError(f"{listed}: {name} has no words")
        try:
            seconds = soundfile.info(path).duration
        except (RuntimeError, OSError):
            raise UserError(f"{name}: cannot decode {path}") from None
        found.append(Utterance(name, speaker, text, str(path), seconds))
    return found


def read_subset(root: Path, name: str, jobs: int) -> list[Utterance]:
    """Read a subset of the corpus.

    Raises:
        UserError: what ``chapters`` and ``read_chapter`` raise, or SPEAKERS.TXT has a reader in
            another subset.
    """
    readers = read_speakers(root / "SPEAKERS.TXT")
    tasks = list(chapters(root / name))
    for speaker, folder in tasks:
        listed = readers.get(speaker.partition("-")[0])
        if listed != name:
            where = f"lists this reader in {listed}" if listed else "has no such reader"
            raise UserError(f"{folder}: {root / 'SPEAKERS.TXT'} {where}, not in {name}")
    bar = {"total": len(tasks), "desc": name, "unit": "chapter", "mininterval": 1.0}
    return [u for found in tqdm(map_processes(read_chapter, tasks, jobs), **bar) for u in found]


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    names = [name for subsets in SETS.values() for name in subsets]
    root = stage.corpus("SPEAKERS.TXT", *names).resolve()
    if stage.is_current([root / "SPEAKERS.TXT", *sorted(root.glob("*/*/*/*.trans.txt"))]):
        return
    found = {name: read_subset(root, name, stage.jobs) for name in names}
    stage.expect(COUNTS, {name: len(items) for name, items in found.items()})
    sets = {part: [u for name in subsets for u in found[name]] for part, subsets in SETS.items()}
    # The subsets are official: a text such as "chapter one" may be in several.
    stage.write(sets, overlapping=sets)


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER)
