"""Activations of a teacher's layers for a set of utterances: cached on disk, or recomputed.

On disk each layer is one memory-mapped file (frames, width) of float32. An index lists the place of
each utterance and the SHA-256 of every file. The folder is whole or absent.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from espnet_ext.data.audio import read_wave
from espnet_ext.encoders.pretrained.mimicked import mimic_activations
from espnet_ext.encoders.pretrained.stack import RATE, Stack
from espnet_ext.files import atomic_path, lock, read_json, sha256_file, write_json

_GB = 1e9
_SUFFIX = ".float32"
_TEACHER_BATCH = 16  # utterances in a forward pass of the teacher
type Batch = tuple[list[Tensor], Tensor]  # (batch, time, width) of each layer; frames (batch,)


@dataclass(frozen=True)
class Teacher:
    """A stack and the layers whose output is needed: 0 is the front end, 1 the first layer, ..."""

    stack: Stack
    layers: tuple[int, ...]

    @torch.no_grad()
    def __call__(self, waves: Sequence[np.ndarray]) -> Batch:
        """Activations of a few utterances, each (samples,)."""
        device = next(self.stack.parameters()).device
        speech = pad_sequence([torch.from_numpy(w) for w in waves], batch_first=True).to(device)
        lengths = torch.tensor([len(w) for w in waves], device=device)
        return mimic_activations(self.stack, speech, lengths, self.layers[0], self.layers[1:])


class Computed:
    """Activations that the teacher computes whenever they are asked for."""

    def __init__(self, teacher: Teacher, rows: Sequence[tuple[str, str]]):
        """``rows`` are utterances and the paths of their audio."""
        self.teacher = teacher
        self.rows = rows

    def batch(self, indices: Sequence[int]) -> Batch:
        """Activations of the utterances at ``indices``."""
        return self.teacher([_wave(self.rows[i]) for i in indices])


class Cached:
    """Activations in a folder that ``write`` made."""

    def __init__(self, folder: Path, layers: Sequence[int], device: torch.device):
        """Map the files of ``layers``; batches go to ``device``."""
        index = read_json(folder / "index.json")
        self.device = device
        self.spans = [
            slice(start, start + frames)
            for start, frames in zip(index["starts"], index["frames"], strict=True)
        ]
        shape = (sum(index["frames"]), index["width"])
        self.layers = [
            np.memmap(folder / name, np.float32, "r", shape=shape) for name in _names(layers)
        ]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Activations of the utterances at ``indices``."""
        spans = [self.spans[i] for i in indices]
        found = [
            pad_sequence([torch.from_numpy(np.array(layer[s])) for s in spans], batch_first=True)
            for layer in self.layers
        ]
        lengths = torch.tensor([s.stop - s.start for s in spans])
        return [layer.to(self.device) for layer in found], lengths.to(self.device)


def activations(
    teacher: Teacher,
    rows: Sequence[tuple[str, str]],
    cache: Path,
    key: Any,
    limit_gb: float,
    name: str,
) -> Computed | Cached:
    """Activations of a set, from disk if they fit there.

    Args:
        teacher: the stack and its layers.
        rows: utterances and the paths of their audio.
        cache: folder of all sets' activations, whose size is limited.
        key: what decides them (the model's files, the audio).
        limit_gb: how large ``cache`` may get; 0: nothing is written.
        name: of the set, for messages.

    Raises:
        UserError: audio that cannot be read, or what the teacher refuses.
    """
    if limit_gb == 0:
        return Computed(teacher, rows)
    settings = json.dumps([key, teacher.layers, rows], sort_keys=True, default=str)
    folder = cache / hashlib.sha256(settings.encode()).hexdigest()[:16]
    # Trainings of a grid want the same ones: one computes them.
    with lock(cache / ".lock"):
        if not is_whole(folder):
            seconds = sum(soundfile.info(path).duration for _, path in rows)
            needed = seconds * _bytes_per_second(teacher, _wave(rows[0])) / _GB
            used = sum(p.stat().st_size for p in cache.rglob(f"*{_SUFFIX}")) / _GB
            if used + needed > limit_gb:
                print(
                    f"mimic: {name}: activations would need {needed:.2f} GB, {used:.2f} GB "
                    f"are in {cache}: more than cache_gb: {limit_gb}; they are computed every epoch"
                )
                return Computed(teacher, rows)
            write(teacher, rows, folder, name)
    return Cached(folder, teacher.layers, next(teacher.stack.parameters()).device)


def is_whole(folder: Path) -> bool:
    """Say whether a folder of activations is there and as it was written."""
    try:
        files = read_json(folder / "index.json")["files"]
        return all(sha256_file(folder / file) == digest for file, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def write(teacher: Teacher, rows: Sequence[tuple[str, str]], folder: Path, name: str) -> None:
    """Compute the activations of a set and write them; utterances of like length go together."""
    sizes = [soundfile.info(path).frames for _, path in rows]
    groups = list(batches(sizes, _TEACHER_BATCH))
    names = _names(teacher.layers)
    frames, starts, width, done = [0] * len(rows), [0] * len(rows), 0, 0
    with atomic_path(folder) as temporary, contextlib.ExitStack() as stack:
        temporary.mkdir(parents=True)
        streams = [stack.enter_context(open(temporary / file, "wb")) for file in names]
        for group in tqdm(groups, desc=f"{name}: teacher", unit="batch"):
            found, lengths = teacher([_wave(rows[i]) for i in group])
            width = found[0].shape[-1]
            for row, index in enumerate(group):
                frames[index], starts[index] = int(lengths[row]), done
                done += frames[index]
                for stream, layer in zip(streams, found, strict=True):
                    layer[row, : frames[index]].float().cpu().numpy().tofile(stream)
        for stream in streams:
            stream.close()
        files = {file: sha256_file(temporary / file) for file in names}
        index = {"width": width, "frames": frames, "starts": starts, "files": files}
        write_json(temporary / "index.json", index)


def batches(sizes: Sequence[float], size: int, seed: int | None = None) -> Iterator[list[int]]:
    """Yield indices in batches of ``size`` of like length; with a seed in a random order."""
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    groups = [order[k : k + size] for k in range(0, len(order), size)]
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    yield from groups


def _bytes_per_second(teacher: Teacher, wave: np.ndarray) -> float:
    found, lengths = teacher([wave])
    return 4 * found[0].shape[-1] * len(found) * int(lengths[0]) / (len(wave) / RATE)


def _names(layers: Sequence[int]) -> list[str]:
    return [f"layer{number}{_SUFFIX}" for number in layers]


def _wave(row: tuple[str, str]) -> np.ndarray:
    return read_wave(row[1], row[0], RATE)
