"""Copies of training sets at other speeds (Ko et al., Interspeech 2015), as Kaldi makes them.

A copy at speed s lasts 1 / s as long and sounds higher by s. data/train_sp is next to data/train:
its utterances, and for each speed a copy of each, sp<s>-<utterance> of the speaker sp<s>-<speaker>.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from espnet_ext.data.kaldi_dir import (
    AUDIO_DIGEST,
    WHOLE,
    Utterance,
    data_sets,
    read_data_dir,
    read_table,
    write_data_dir,
)
from espnet_ext.data.processes import map_processes
from espnet_ext.data.segments import set_folder
from espnet_ext.files import DONE, Stamp, atomic_path, write_text

_SUFFIX = "_sp"


def with_copies(name: str) -> str:
    """The name of a set and its copies."""
    return f"{name}{_SUFFIX}"


def holds_copies(name: str) -> bool:
    """True for the name of a set and its copies."""
    return name.endswith(_SUFFIX)


def write_copies(data: Path, train_set: str, speeds: Sequence[float], jobs: int) -> None:
    """Write the copies of a training set, of the sets of that name in folds, and of data/all.

    Args:
        data: the recipe's data directories.
        train_set: its name.
        speeds: of the copies.
        jobs: processes.

    Raises:
        UserError: a damaged data directory, or audio that cannot be read.
    """
    part = train_set.rpartition("/")[2]
    names = [name for name in data_sets(data) if name.rpartition("/")[2] in (part, WHOLE)]
    folders = {name: set_folder(data, name) for name in names}
    out = data / "speeds"
    inputs = [path for folder in folders.values() for path in sorted(folder.glob("*[!~]"))]
    inputs = [path for path in inputs if path.is_file()]
    stamp = Stamp(out / DONE, {"speeds": list(speeds)}, inputs)
    if not names or stamp.is_current():
        return
    sets = {name: read_data_dir(folder) for name, folder in folders.items()}
    copies = _convert({u.id: u for some in sets.values() for u in some}.values(), speeds, out, jobs)
    written: list[Path] = []
    for name, utterances in sets.items():
        more = [copies[speed, u.id] for speed in speeds for u in utterances]
        folder = data / with_copies(name)
        written += write_data_dir(folder, [*utterances, *more])
        digests = folders[name] / AUDIO_DIGEST
        if digests.is_file():
            _write_digests(read_table(digests), speeds, folder / AUDIO_DIGEST)
    stamp.write(written)
    print(f"features: {len(copies)} copies at other speeds for {len(sets)} sets, in {out}")


def _convert(
    utterances: Iterable[Utterance], speeds: Sequence[float], out: Path, jobs: int
) -> dict[tuple[float, str], Utterance]:
    """Write the audio of all copies; return these by speed and utterance."""
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    tasks = [(speed, utterance) for speed in speeds for utterance in utterances]
    found = {}
    rows = map_processes(partial(_copy, out), tasks, jobs)
    for (speed, utterance), copy in zip(tasks, tqdm(rows, "speeds", len(tasks)), strict=True):
        found[speed, utterance.id] = copy
    return found


def _copy(out: Path, task: tuple[float, Utterance]) -> Utterance:
    from espnet_ext.data.audio import read_samples, resampled, write_flac

    speed, utterance = task
    prefix = _prefix(speed)
    path = out / f"{prefix}{utterance.id}.flac"
    samples, rate = read_samples(Path(utterance.audio), utterance.id)
    slowed = resampled(samples.mean(1), round(rate * speed), rate)
    with atomic_path(path) as temporary:
        seconds = write_flac(temporary, slowed, rate, rate)
    return dataclasses.replace(
        utterance,
        id=f"{prefix}{utterance.id}",
        speaker=f"{prefix}{utterance.speaker}",
        audio=str(path),
        seconds=seconds,
    )


def _prefix(speed: float) -> str:
    """The beginning of the names of copies at a speed."""
    return f"sp{speed:g}-"


def _write_digests(known: dict[str, str], speeds: Sequence[float], path: Path) -> None:
    """Write what changes when the audio of a set and its copies does."""
    rows = dict(known)
    for speed in speeds:
        for name, digest in known.items():
            changed = hashlib.sha256(f"{digest} {speed:g}".encode())
            rows[_prefix(speed) + name] = changed.hexdigest()
    write_text(path, "".join(f"{name} {rows[name]}\n" for name in sorted(rows)))
