#!/usr/bin/env python3
"""Prepare DAIC-WOZ for the detection of depression, AVEC-2017 split, a vote for each participant.

Example:
  python local/data.py --corpus DAIC-WOZ --out data

The folder holds <id>_P/<id>_{AUDIO.wav,TRANSCRIPT.csv} and the lists {train,dev}_split_Depression_
AVEC2017.csv. Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/train, data/dev   the official training list: every fifth participant of each class is dev,
                         which chooses epochs; together 2,766 segments of 107 participants
  data/test              the official development list: 966 segments of 35 participants

Rules, as in SpeechFormer's code: turns of the participant, cut by the times of the transcript; the
longest 18 of one without depression and 46 of one with it, which balances the classes. (The number
of test segments thus depends on the label; a vote does not see it.)
Transcripts are separated by tabs, lists by commas; a list spells its columns in one of three ways.
"""

import csv
from collections import Counter
from pathlib import Path

from espnet_ext.data.audio import OVERSHOOT, seconds_of
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main, print_left_out
from espnet_ext.data.corpora.tables import inside, reading_csv
from espnet_ext.errors import UserError, nearest

LISTS = {
    "train": "train_split_Depression_AVEC2017.csv",
    "test": "dev_split_Depression_AVEC2017.csv",
}
LONGEST = {"control": 18, "depressed": 46}
PARTICIPANTS = {"train control": 77, "train depressed": 30, "test control": 23}
PARTICIPANTS["test depressed"] = 12
SEGMENTS = {"train and dev": 2766, "test": 966}
EVERY = 5  # one in so many training participants is for dev
FOLDER = "the folder that holds 300_P and the like, and the lists *_split_Depression_AVEC2017.csv"
_ID = ("Participant_ID", "participant_ID")
_BINARY = ("PHQ8_Binary", "PHQ_Binary")


def read_list(path: Path) -> dict[str, str]:
    """Return the class of each participant.

    Raises:
        UserError: not UTF-8, columns are missing (or separated by tabs), a value is neither 0 nor
            1, or a participant occurs twice.
    """
    with reading_csv(path) as stream:
        reader = csv.DictReader(stream)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        if len(columns) == 1 and "\t" in columns[0]:
            raise UserError(f"{path}: separated by tabs, expected commas")
        keys = [next((n for n in known if n in columns), None) for known in (_ID, _BINARY)]
        for key, known in zip(keys, (_ID, _BINARY), strict=True):
            if key is None:
                listed = ", ".join(columns)
                raise UserError(f"{path}: no column {' or '.join(known)}; it has {listed}")
        found: dict[str, str] = {}
        for row in reader:
            number, value = ((row[str(key)] or "").strip() for key in keys)
            if not number:
                continue  # lists end in lines of commas
            if value not in ("0", "1"):
                raise UserError(f"{path}: participant {number} has {keys[1]} '{value}', not 0 or 1")
            if number in found:
                raise UserError(f"{path}: participant {number} occurs twice")
            found[number] = "depressed" if value == "1" else "control"
    if not found:
        raise UserError(f"{path}: no participant in it")
    return found


def read_turns(path: Path) -> list[tuple[float, float]]:
    """Return start and end (seconds) of the participant's turns, as they are written.

    Raises:
        UserError: not separated by tabs, a column or the participant is missing, or a wrong time.
    """
    with reading_csv(path) as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = reader.fieldnames or []
        if len(columns) == 1 and "," in columns[0]:
            raise UserError(f"{path}: separated by commas, expected tabs")
        for name in ("start_time", "stop_time", "speaker"):
            if name not in columns:
                raise UserError(f"{path}: no column {nearest(name, columns)}")
        turns = []
        for number, row in enumerate(reader, 2):
            if (row["speaker"] or "").strip() != "Participant":
                continue
            try:
                start, end = float(row["start_time"]), float(row["stop_time"])
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number}: a time is not a number") from None
            turns.append((start, end))
    if not turns:
        raise UserError(f"{path}: no turn of the speaker Participant in it")
    return turns


def segments(root: Path, number: str, label: str, count: Counter[str]) -> list[Clip]:
    """Return the longest turns of a participant, in their order; count those left out.

    A turn must begin and end in the recording: one of 90 s whose last 80 s do not exist would be
    chosen first.

    Raises:
        UserError: the session's folder, audio or transcript is missing.
    """
    folder = inside(root, f"{number}_P")
    audio, transcript = (folder / f"{number}_{name}" for name in ("AUDIO.wav", "TRANSCRIPT.csv"))
    for path in (audio, transcript):
        if not path.is_file():
            raise UserError(f"no {path}, and participant {number} is in the lists")
    last = seconds_of(audio, number) + OVERSHOOT
    written = read_turns(transcript)
    recorded = [(start, end) for start, end in written if 0 <= start < end <= last]
    count["turns outside their recording"] += len(written) - len(recorded)
    if not recorded:
        raise UserError(f"{audio} ends after {last - OVERSHOOT:.1f} s, before every turn")
    turns = sorted(recorded, key=lambda t: (t[0] - t[1], t[0]))[: LONGEST[label]]
    return [
        Clip(
            id=f"{number}-{round(start * 1000):07}",
            speaker=number,
            label=label,
            source=audio,
            start=start,
            end=end,
        )
        for start, end in sorted(turns)
    ]


def split(lists: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return train, dev and test (participant -> class); dev is a part of the training list."""
    shared = sorted(lists["train"].keys() & lists["test"].keys())
    if shared:
        raise UserError(f"participant {shared[0]} is in both lists, {' and '.join(LISTS.values())}")
    dev: dict[str, str] = {}
    for label in LONGEST:
        members = sorted(n for n, c in lists["train"].items() if c == label)
        dev |= dict.fromkeys(members[EVERY - 1 :: EVERY], label)
    train = {n: c for n, c in lists["train"].items() if n not in dev}
    return {"train": train, "dev": dev, "test": lists["test"]}


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    root = stage.corpus(*LISTS.values())
    lists = {part: read_list(root / name) for part, name in LISTS.items()}
    transcripts = [root / f"{n}_P/{n}_TRANSCRIPT.csv" for found in lists.values() for n in found]
    if stage.is_current([*(root / name for name in LISTS.values()), *transcripts]):
        return
    left_out: Counter[str] = Counter()
    clips = {
        part: [c for n, label in sorted(found.items()) for c in segments(root, n, label, left_out)]
        for part, found in split(lists).items()
    }
    print_left_out(left_out)
    counts = Counter(f"{part} {c}" for part, found in lists.items() for c in found.values())
    stage.expect(PARTICIPANTS, counts)
    lengths = {"train and dev": len(clips["train"]) + len(clips["dev"])}
    stage.expect(SEGMENTS, lengths | {"test": len(clips["test"])})
    stage.write(stage.convert_sets(clips))


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER)
