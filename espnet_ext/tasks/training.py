"""ESPnet's trainer, made safe to kill, with forward passes in bfloat16 on a CPU when asked."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.asr import ASRTask as ESPnetASRTask
from espnet2.train.trainer import Trainer as ESPnetTrainer

from espnet_ext.files import atomic_path
from espnet_ext.tasks.registry import install

install()


class Trainer(ESPnetTrainer):
    """ESPnet's trainer; ``cpu_dtype`` is a class setting since ESPnet never instantiates it."""

    cpu_dtype: torch.dtype | None = None

    @classmethod
    def train_one_epoch(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> bool:
        """As ESPnet's, the forward pass under autocast if ``cpu_dtype`` is set."""
        with _autocast_forward(model, cls.cpu_dtype):
            return super().train_one_epoch(model, *args, **kwargs)


class ASRTask(ESPnetASRTask):
    """ESPnet's ASR task with the trainer above."""

    trainer = Trainer


def supported_cpu_dtype(name: str) -> torch.dtype | None:
    """Return bfloat16 if asked for and computed natively here, else None (float32)."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if name == "bfloat16" and native else None


@contextlib.contextmanager
def _autocast_forward(model: torch.nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    plain = model.forward
    # Only the forward pass: the backward pass then uses the types that it chose.
    model.forward = torch.autocast("cpu", dtype)(plain)  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.forward = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def atomic_checkpoints() -> Iterator[None]:
    """While active, ``torch.save`` to a path writes a temporary file and renames it.

    ESPnet calls ``torch.save(state, path)`` directly: a kill while it writes would lose the
    run (espnet issue 5407).
    """
    plain = torch.save

    @functools.wraps(plain)
    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | os.PathLike):
            plain(obj, f, *args, **kwargs)
            return
        with atomic_path(f) as temporary:
            plain(obj, temporary, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain


def repair(exp: Path) -> None:
    """Bring a killed run to the state after its last whole epoch.

    ESPnet writes checkpoint.pth, then <epoch>epoch.pth; a kill in between leaves the second
    out, and averaging would miss it.
    """
    checkpoint = exp / "checkpoint.pth"
    if not checkpoint.exists():
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = exp / f"{state['reporter']['epoch']}epoch.pth"
    if not model.exists():
        with atomic_checkpoints():
            torch.save(state["model"], model)


def history(exp: Path) -> tuple[int, float]:
    """Return the whole epochs of a run and the seconds of their training and validation."""
    if not (exp / "checkpoint.pth").exists():
        return 0, 0.0
    state = torch.load(exp / "checkpoint.pth", map_location="cpu", weights_only=True)
    epochs = state["reporter"]["stats"]
    phases = [phase for epoch in epochs.values() for phase in epoch.values()]
    return len(epochs), sum(phase["time"]["__timedelta_seconds__"] for phase in phases)


def run_task(command: list[str]) -> None:
    """Run ESPnet's ASR task in this process with ``command`` as its options."""
    with atomic_checkpoints():
        ASRTask.main(cmd=command)
