"""The state of a training within an epoch: a run goes on from it with the same batches.

ESPnet saves after whole epochs; where an epoch takes hours, a kill would lose hours.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Average, SubReporter, WeightedAverage
from torch import nn

from espnet_ext.bridge.checkpoint import save
from espnet_ext.bridge.training.collective import gathered, largest, rank, world
from espnet_ext.bridge.training.launch import stopped
from espnet_ext.bridge.training.resume import load_training

FILE = "checkpoint_step.pth"
_STOPS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Parts:
    """All that an epoch changes."""

    model: nn.Module  # perhaps wrapped for several processes
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]  # with state_dict(), or None
    scaler: Any  # with state_dict(), or None
    reporter: SubReporter

    def state(self) -> dict[str, Any]:
        """All of it, as ``torch.load`` reads without executing code."""
        return {
            "model": _plain(self.model).state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() if s is not None else None for s in self.schedulers],
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "reporter": _reported(self.reporter),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        _plain(self.model).load_state_dict(state["model"])
        for part, found in zip(self.optimizers, state["optimizers"], strict=True):
            part.load_state_dict(found)
        for part, found in zip(self.schedulers, state["schedulers"], strict=True):
            if part is not None:
                part.load_state_dict(found)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        _report(self.reporter, state["reporter"])


class StepCheckpoints:
    """Saves a training within an epoch: every few minutes, and when a signal stops it.

    Args:
        folder: of the run.
        minutes: between two checkpoints; 0: only when a signal stops the training.
        on_save: called by the process that wrote one.
    """

    def __init__(self, folder: Path, minutes: float, on_save: Callable[[], None] | None = None):
        self.path = folder / FILE
        self.seconds = 60 * minutes
        self.on_save = on_save
        self.saved = time.monotonic()
        self.stop_signal = 0  # the signal that asks to stop; 0: none

    def __enter__(self) -> "StepCheckpoints":
        """Save and stop at SIGTERM and SIGUSR1, after the step in progress."""
        self.before = {stop: signal.signal(stop, self._note) for stop in _STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        """Back to what the signals did before."""
        for stop, handler in self.before.items():
            signal.signal(stop, handler)

    def _note(self, number: int, _: object) -> None:
        self.stop_signal = number

    def remove(self) -> None:
        """Remove the file: its epoch is over."""
        if rank() == 0:
            self.path.unlink(missing_ok=True)

    def restored(self, parts: Parts) -> dict[str, Any] | None:
        """Go back to the last state of this epoch, if there is one of as many processes.

        Raises:
            UserError: it is damaged.
        """
        if not self.path.exists():
            return None
        state = load_training(self.path, "remove it to go on from the last whole epoch")
        epoch, processes = state["epoch"], len(state["random"])
        if epoch != parts.reporter.get_epoch():
            return None
        if processes != world():
            _say(f"epoch {epoch} starts again: its state is of {processes} processes")
            return None
        parts.load(state)
        _say(f"goes on in epoch {epoch}, after {state['steps']} of its steps")
        return state

    def steps(self, iterator: Any, parts: Parts, state: Any, every: int) -> Iterator[Any]:
        """The batches of an epoch that are left to do; saves between two of them.

        Args:
            iterator: of all batches.
            parts: of the training.
            state: what ``restored`` returned.
            every: a state can be saved after so many steps, as their gradients are summed up.

        Raises:
            StoppedError: a signal stopped the training; its state is saved.
        """
        batches = iter(iterator)
        done = state["steps"] if state else 0
        for _ in range(done):
            next(batches)
        if state:
            _set_random(state["random"][rank()])
        while True:
            if done % every == 0:
                self.save_if_due(parts, done)
            try:
                batch = next(batches)
            except StopIteration:
                return
            done += 1
            yield batch

    def save_if_due(self, parts: Parts, done: int) -> None:
        """Save the state after ``done`` steps, if the time for it has come or a signal asks for it.

        Raises:
            StoppedError: a signal asked for it.
        """
        late = self.seconds > 0 and time.monotonic() - self.saved >= self.seconds
        number, due = largest([self.stop_signal, late and rank() == 0])
        if not number and not due:
            return
        found = gathered(_random())
        if rank() == 0:
            more = {"epoch": parts.reporter.get_epoch(), "steps": done, "random": found}
            save({**parts.state(), **more}, self.path)
            if self.on_save is not None:
                self.on_save()
        self.saved = time.monotonic()
        if number:
            largest([0])  # no process may end before the file is whole
            raise stopped(signal.Signals(int(number)).name)


def _say(line: str) -> None:
    if rank() == 0:
        print(f"train: {line}")


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _random() -> dict[str, Any]:
    """The state of every random generator of this process."""
    name, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _reported(reporter: SubReporter) -> dict[str, Any]:
    """The values that an epoch reported so far."""
    stats = {
        key: [
            (float(v.value), float(v.weight) if isinstance(v, WeightedAverage) else None)
            for v in values
        ]
        for key, values in reporter.stats.items()
    }
    seconds = time.perf_counter() - reporter.start_time
    counts = {"count": reporter.count, "total_count": reporter.total_count}
    return {"stats": stats, "seconds": seconds, **counts}


def _report(reporter: SubReporter, state: Mapping[str, Any]) -> None:
    for key, values in state["stats"].items():
        reporter.stats[key] = [
            Average(v) if w is None else WeightedAverage(v, w) for v, w in values
        ]
    reporter.count, reporter.total_count = state["count"], state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]
