#!/usr/bin/env python3
"""Prepare VoxCeleb1 for identification: which of 1,251 speakers?

Example:
  python local/data.py --corpus VoxCeleb1 --out data

The corpus is in either layout:
  {dev,test}/wav/id10001/<video>/00001.wav    the present one; the split has files of both
  voxceleb1_wav/<Name>/<video>_0000001.wav    the first one; needs vox1_meta.csv for the names
and has iden_split.txt, whose lines are "1 id10003/na8-QEFmj44/00003.wav" (in the first release
"1 A.J._Buckley/J9lHsKG98U8_0000003.wav"): 1 is train, 2 dev and 3 test.

Writes 16 kHz mono FLAC to data/audio, and the sets data/{train,dev,test}. An utterance's id is
speaker-video-segment; the speaker is the class.
"""

import csv
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.corpora.tables import reading_csv
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_utf8

SPLIT, META = "iden_split.txt", "vox1_meta.csv"
OLD = "voxceleb1_wav"
PARTS = {"1": "train", "2": "dev", "3": "test"}
COUNTS = {"speakers": 1251, "train": 138361, "dev": 6904, "test": 8251}
FOLDER = f"the folder that holds dev/wav and test/wav (or {OLD}) and {SPLIT}"
_VIDEO = 11  # characters of a video's id, which may itself hold _ and -


def read_meta(path: Path) -> dict[str, str]:
    """Return the ids of speakers by name.

    Raises:
        UserError: it is missing, is not separated by tabs, or has a name twice.
    """
    if not path.is_file():
        raise UserError(f"no {path}, which has the names of the speakers")
    with reading_csv(path) as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    if not rows or len(rows[0]) < 2:
        raise UserError(f"{path}: expected columns separated by tabs (VoxCeleb1 ID, name, ...)")
    names: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) < 2 or not row[0].startswith("id"):
            raise UserError(f"{path}: line {number}: expected an id and a name between tabs")
        if row[1] in names:
            raise UserError(f"{path}: line {number}: {row[1]} occurs twice")
        names[row[1]] = row[0]
    return names


def parse_entry(entry: str, ids: dict[str, str]) -> tuple[str, str, int]:
    """Return (speaker's id, video, segment) of an entry of the split, in either form.

    Raises:
        ValueError: it is neither.
        UserError: a name that the meta file lacks.
    """
    parts = entry.removesuffix(".wav").split("/")
    if len(parts) == 3:
        speaker, video, segment = parts
    else:
        speaker, file = parts
        video, segment = file[:_VIDEO], file[_VIDEO + 1 :]
    if not speaker or len(video) != _VIDEO or not segment.isdecimal():
        raise ValueError(entry)
    if len(parts) == 2:
        if speaker not in ids:
            raise UserError(f"{META} has no speaker {nearest(speaker, ids)}")
        speaker = ids[speaker]
    return speaker, video, int(segment)


class Tree:
    """The audio of the corpus, in either layout."""

    def __init__(self, root: Path):
        """Find out the layout.

        Raises:
            UserError: neither, or only half of the present one.
        """
        self.root = root
        self.old = (root / OLD).is_dir()
        has = [part for part in ("dev", "test") if (root / part / "wav").is_dir()]
        if not self.old and not has:
            raise UserError(f"{root}: neither dev/wav nor {OLD} in it; --corpus is {FOLDER}")
        if not self.old and len(has) < 2:
            raise UserError(
                f"{root}: no {'test' if has == ['dev'] else 'dev'}/wav in it, and the "
                "identification split has files of both; unpack it too"
            )
        self.ids = read_meta(root / META) if self.old or (root / META).is_file() else {}
        self.names = {speaker: name for name, speaker in self.ids.items()}

    def path(self, speaker: str, video: str, segment: int) -> Path | None:
        """Return the file of an utterance, None if it is missing."""
        if self.old:
            name = self.names.get(speaker, speaker)
            places = [self.root / OLD / name / f"{video}_{segment:07d}.wav"]
        else:
            inside = Path("wav", speaker, video, f"{segment:05d}.wav")
            places = [self.root / part / inside for part in ("dev", "test")]
        return next((path for path in places if path.is_file()), None)


def read_split(root: Path) -> dict[str, list[Clip]]:
    """Return the clips of the identification split by part.

    Raises:
        UserError: a wrong line, a file that is missing, occurs twice or belongs to a speaker whom
            the meta file lacks.
    """
    tree = Tree(root)
    parts: dict[str, list[Clip]] = {part: [] for part in PARTS.values()}
    seen: set[str] = set()
    for number, line in enumerate(read_utf8(root / SPLIT).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{root / SPLIT}: line {number}"
        try:
            part = PARTS[words[0]]
            speaker, video, segment = parse_entry(words[1], tree.ids)
        except (KeyError, IndexError, ValueError):
            raise UserError(
                f"{where}: expected 1, 2 or 3 and a file as in "
                f"'1 id10003/na8-QEFmj44/00003.wav', not {line!r}"
            ) from None
        if tree.ids and speaker not in tree.names:
            raise UserError(f"{where}: {META} has no speaker {nearest(speaker, tree.names)}")
        path = tree.path(speaker, video, segment)
        if path is None:
            raise UserError(f"{where}: {words[1]} is not in {root}")
        key = f"{speaker}-{video}-{segment:05d}"
        if key in seen:
            raise UserError(f"{where}: {words[1]} occurs twice")
        seen.add(key)
        parts[part].append(Clip(id=key, speaker=speaker, label=speaker, source=path))
    return parts


def check_speakers(parts: dict[str, list[Clip]]) -> None:
    """Raise UserError for a speaker who is tested but not trained."""
    trained = {clip.label for clip in parts["train"]}
    for name in ("dev", "test"):
        for clip in parts[name]:
            if clip.label not in trained:
                raise UserError(f"{SPLIT}: {clip.label} is in {name} but not in train")


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    root = stage.corpus(SPLIT)
    if stage.is_current([root / SPLIT, root / META]):
        return
    parts = read_split(root)
    check_speakers(parts)
    counts = {name: len(clips) for name, clips in parts.items()}
    stage.expect(COUNTS, counts | {"speakers": len({clip.speaker for clip in parts["train"]})})
    stage.write(stage.convert_sets(parts))


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER)
