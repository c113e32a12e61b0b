#!/usr/bin/env python3
"""Prepare IEMOCAP for emotion recognition with four classes, one session left out.

Example:
  python local/data.py --corpus IEMOCAP_full_release --out data

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all                5,531 utterances: angry 1,103, happy 1,636, neutral 1,708, sad 1,084
  data/{train,dev,test}   test Session5, dev Session4, the other three
  data/session-N/{train,dev,test}   test Session N, dev the next (of 5 the first), the other three

Rules: categorical labels of dialog/EmoEvaluation/<dialogue>.txt; excited counts as happy; other
emotions are left out. The speaker is the session and the letter of the utterance's last field, not
that of its dialogue. Subfolders of EmoEvaluation (single raters) and hidden files are not read.
"""

import re
from collections import Counter
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.errors import UserError, nearest

FOLDER = "the folder that holds Session1 to Session5 (IEMOCAP_full_release)"
SESSIONS = ("Session1", "Session2", "Session3", "Session4", "Session5")
CLASSES = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
OTHERS = ("fru", "fea", "sur", "dis", "oth", "xxx")
COUNTS = {"all": 5531, "angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
PER_SESSION = {
    "Session1": 1085,
    "Session2": 1023,
    "Session3": 1151,
    "Session4": 1031,
    "Session5": 1241,
}
_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t\[")


def find_sessions(root: Path) -> list[Path]:
    """Return the five sessions' folders.

    Raises:
        UserError: one is missing, or there is another.
    """
    found = {path.name for path in root.glob("Session*") if path.is_dir()}
    for name in SESSIONS:
        if name not in found:
            raise UserError(f"{root}: no {name} in it; --corpus is {FOLDER}")
    for name in sorted(found - set(SESSIONS)):
        raise UserError(f"{root}: {name} is no session of IEMOCAP, which has five; move it away")
    return [root / name for name in SESSIONS]


def read_session(session: Path) -> list[Clip]:
    """Read the labels of a session; utterances of other emotions are left out.

    Raises:
        UserError: no labels (or none in a file), an unknown one, an utterance twice or without
            audio.
    """
    folder = session / "dialog/EmoEvaluation"
    files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: no files of labels in it")
    clips, seen = [], set()
    for path in files:
        turns = _LINE.findall(path.read_text(encoding="utf-8", errors="replace"))
        if not turns:
            raise UserError(
                f"{path}: no line of a turn in it, [start - end], utterance, emotion, [V, A, D] "
                "with tabs between"
            )
        for name, code in turns:
            if code not in CLASSES and code not in OTHERS:
                known = [*CLASSES, *OTHERS]
                raise UserError(f"{path}: {name} has the unknown label {nearest(code, known)}")
            if name in seen:
                raise UserError(f"{path}: {name} is labelled twice")
            seen.add(name)
            if code not in CLASSES:
                continue
            audio = session / "sentences/wav" / path.stem / f"{name}.wav"
            if not audio.is_file():
                raise UserError(f"{path}: {name} has no audio {audio}")
            speaker = name[:5] + name.rpartition("_")[2][0]
            key = f"{speaker}-{name}"
            clips.append(Clip(id=key, speaker=speaker, label=CLASSES[code], source=audio))
    return clips


def arrange(sessions: list[list[Utterance]]) -> tuple[dict, dict]:
    """Return the sets, and the folds: fold -> part -> utterances."""
    folds = {}
    for number in range(len(sessions)):
        after = (number + 1) % len(sessions)
        rest = [s for i, s in enumerate(sessions) if i not in (number, after)]
        folds[str(number + 1)] = {
            "train": [u for s in rest for u in s],
            "dev": sessions[after],
            "test": sessions[number],
        }
    sets = {
        "all": [u for s in sessions for u in s],
        "train": [u for s in sessions[:3] for u in s],
        "dev": sessions[3],
        "test": sessions[4],
    }
    return sets, folds


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    sessions = find_sessions(stage.corpus())
    labels = [path for s in sessions for path in sorted((s / "dialog/EmoEvaluation").glob("*.txt"))]
    if stage.is_current(labels):
        return
    clips = {session.name: read_session(session) for session in sessions}
    counts = Counter(clip.label for found in clips.values() for clip in found)
    stage.expect(COUNTS, counts | Counter(all=counts.total()))
    stage.expect(PER_SESSION, {name: len(found) for name, found in clips.items()})
    sets, folds = arrange(list(stage.convert_sets(clips).values()))
    stage.write(sets, {"session": folds})


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER)
