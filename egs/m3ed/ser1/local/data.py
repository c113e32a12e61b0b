#!/usr/bin/env python3
"""Prepare M3ED (Mandarin television dialogues) for emotion recognition, official split.

Example:
  python local/data.py --corpus M3ED --out data

The folder holds annotation.json, splitInfo/movie_list_{train,val,test}.txt and, anywhere below
modality_speech, the audio <speaker>_<utterance>.wav. Writes 16 kHz mono FLAC to data/audio, and
data/{train,dev,test}: 17,427, 2,821 and 4,201 utterances less the twelve whose audio is empty.

Rules: the class is EmoAnnotation: final_main_emo. A speaker is a series and a name (the letters A
and B are those of a dialogue only). Series of a split share no speaker with those of another.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from espnet_ext.data.audio import has_no_samples
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_json, read_utf8

CLASSES = ("Happy", "Neutral", "Sad", "Disgust", "Anger", "Fear", "Surprise")
PARTS = {"train": "train", "dev": "val", "test": "test"}
COUNTS = {"train": 17427, "dev": 2821, "test": 4201, "empty": 12}
FOLDER = "the folder that holds annotation.json, splitInfo and modality_speech (M3ED)"


def read_split(root: Path) -> dict[str, str]:
    """Return the part of each series.

    Raises:
        UserError: a series is in two parts.
    """
    part_of: dict[str, str] = {}
    for part, name in PARTS.items():
        path = root / "splitInfo" / f"movie_list_{name}.txt"
        for series in read_utf8(path).split():
            if part_of.setdefault(series, part) != part:
                raise UserError(f"{path}: {series} is in {part_of[series]} too")
    return part_of


def read_clips(root: Path, part_of: dict[str, str]) -> tuple[dict[str, list[Clip]], Counter[str]]:
    """Return the clips of each part without those whose audio is empty; count all, and these.

    Raises:
        UserError: a series is in no part or has no annotation, an unknown class, no audio.
    """
    annotation = read_annotation(root / "annotation.json")
    audio = {path.stem: path for path in sorted((root / "modality_speech").rglob("*.wav"))}
    for series in part_of:
        if series not in annotation:
            raise UserError(
                f"{root}/annotation.json: no series {nearest(series, annotation)}, "
                f"which splitInfo has in {part_of[series]}"
            )
    clips: dict[str, list[Clip]] = {name: [] for name in PARTS}
    count: Counter[str] = Counter()
    for series, dialogues in annotation.items():
        if series not in part_of:
            raise UserError(f"{root}/splitInfo: {series} of annotation.json is in no list")
        for dialogue in dialogues.values():
            for name, entry in _key(root, series, dialogue, "Dialog").items():
                label = _key(root, name, entry, "EmoAnnotation", "final_main_emo")
                if label not in CLASSES:
                    known = nearest(str(label), CLASSES)
                    raise UserError(f"{root}/annotation.json: {name}: unknown class {known}")
                letter = _key(root, name, entry, "Speaker")
                # The id in the annotation lacks the speaker that the file's name begins with.
                path = audio.get(f"{letter}_{name}")
                if path is None:
                    raise UserError(f"{root}/modality_speech: no {letter}_{name}.wav in it")
                who = str(_key(root, name, dialogue, "SpeakerInfo", letter, "Name"))
                who = "".join(who.split()) or letter
                speaker = f"{series}_{who}"
                count[part_of[series]] += 1
                if not path.stat().st_size or has_no_samples(path):
                    count["empty"] += 1
                    continue
                key = f"{speaker}-{letter}_{name}"
                clip = Clip(id=key, speaker=speaker, label=label, source=path)
                clips[part_of[series]].append(clip)
    return clips, count


def read_annotation(path: Path) -> dict[str, Any]:
    """Return the dialogues by series.

    Raises:
        UserError: the file is not JSON, or no series of dialogues.
    """
    try:
        annotation = read_json(path)
    except ValueError:
        raise UserError(f"{path}: not valid JSON in UTF-8; fetch it again") from None
    if not isinstance(annotation, dict) or not all(
        isinstance(d, dict) for d in annotation.values()
    ):
        raise UserError(f"{path}: expected series, each with its dialogues")
    return annotation


def _key(root: Path, owner: str, value: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{root}/annotation.json: {owner}: no {key}")
        value = value[key]
    return value


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    lists = [f"splitInfo/movie_list_{name}.txt" for name in PARTS.values()]
    root = stage.corpus("annotation.json", *lists, "modality_speech")
    if stage.is_current([root / name for name in ("annotation.json", *lists)]):
        return
    clips, count = read_clips(root, read_split(root))
    print(f"{root}: {count['empty']} utterances left out, their audio is empty")
    stage.expect(COUNTS, count)
    stage.write(stage.convert_sets(clips))


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER)
