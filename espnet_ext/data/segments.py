"""Kaldi data directories with ``segments``: utterances that are stretches of recordings.

A line is ``utterance recording start end``, in seconds; an end of -1 is that of the recording.
``wav.scp`` then names recordings. Stage 2 cuts them, and all later stages read the cut directory.
"""

import math
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip, convert
from espnet_ext.data.kaldi_dir import read_table, write_data_dir
from espnet_ext.errors import UserError
from espnet_ext.files import DONE, Stamp

SEGMENTS = "segments"
_TABLES = ("text", "label", "utt2spk")


def set_folder(data: Path, name: str) -> Path:
    """Return the directory of a set whose wav.scp names utterances: with segments the cut one."""
    if (data / name / SEGMENTS).is_file():
        return data.parent / "dump/cut" / name
    return data / name


def cut(data: Path, name: str, jobs: int) -> None:
    """Cut the segments of a set into 16 kHz FLAC, in ``set_folder``, unless that was done.

    Raises:
        UserError: a wrong line, a recording or a table that is missing, or audio that ``convert``
            refuses, such as a segment that ends after its recording.
    """
    source, folder = data / name, set_folder(data, name)
    recordings = read_table(source / "wav.scp")
    texts = sorted(source.glob("text.*"))
    tables = {n: read_table(source / n) for n in _TABLES if (source / n).is_file()}
    named = [source / n for n in ("wav.scp", SEGMENTS, *tables)]
    for recording, path in recordings.items():
        if not Path(path).is_file():
            raise UserError(f"{source}/wav.scp: {recording}: no audio file {path}")
    stamp = Stamp(folder / DONE, [], [*named, *texts, *map(Path, recordings.values())])
    if stamp.is_current():
        return
    translations = {path.suffix[1:]: read_table(path) for path in texts}
    clips = []
    for utterance, line in read_table(source / SEGMENTS).items():
        recording, start, end = _segment(source / SEGMENTS, utterance, line)
        if recording not in recordings:
            raise UserError(f"{source}/{SEGMENTS}: {utterance}: no {recording} in wav.scp")
        values = {n: table.get(utterance, "") for n, table in tables.items()}
        clips.append(
            Clip(
                id=utterance,
                speaker=values.get("utt2spk") or utterance,
                source=Path(recordings[recording]),
                text=values.get("text", ""),
                label=values.get("label", ""),
                translations=tuple((n, t.get(utterance, "")) for n, t in translations.items()),
                start=start,
                end=end,
            )
        )
    audio = folder.parent / f"{folder.name}_audio"
    written = write_data_dir(folder, convert(clips, audio, jobs))
    stamp.write(written)
    print(f"features: {folder}: {len(clips)} segments cut from {len(recordings)} recordings")


def _segment(path: Path, utterance: str, line: str) -> tuple[str, float, float | None]:
    """Return recording, start and end (None: that of the recording) of a line."""
    fields = line.split()
    try:
        recording, start, end = fields[0], float(fields[1]), float(fields[2])
    except (IndexError, ValueError):
        fields = []
    if len(fields) != 3:
        raise UserError(f"{path}: {utterance}: expected 'utterance recording start end'")
    if end == -1:
        end = math.inf
    if not 0 <= start < end:
        raise UserError(f"{path}: {utterance}: no time from {start:g} s to {end:g} s")
    return recording, start, None if math.isinf(end) else end
