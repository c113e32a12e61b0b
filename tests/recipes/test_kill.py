"""Stages killed (kill -9) at any moment and started again end as if nothing had happened."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from tests.fixtures import finished, forked, miniature

VERBS = {k: finished.VERBS[k] for k in ("features", "tokens", "train", "deploy", "decode")}
WRITES = ("os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "open")


def written(folder: Path) -> dict[str, object]:
    """What a recipe folder holds; times, logs and hidden stamps are not compared."""
    found: dict[str, object] = {}
    for path in sorted(p for n in ("dump", "data", "exp") for p in (folder / n).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.name == "checkpoint.pth":
            found[name] = resumable(path)
        elif path.suffix == ".npz":
            arrays = np.load(path)
            found[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif path.name in ("calls.json", "train.json", "decode.json"):
            found[name] = "with times"
        elif path.suffix == ".pth":
            state = torch.load(path, weights_only=True)
            found[name] = {k: v.numpy().tobytes() for k, v in state.items()}
        elif path.is_file() and not path.name.endswith((".log", ".done.json")):
            found[name] = path.read_bytes()
        elif path.is_file():
            found[name] = "whole"
    return found


def resumable(checkpoint: Path) -> list:
    """What training goes on from, as bytes: model, optimizers, schedulers, and the losses."""
    state = torch.load(checkpoint, weights_only=True)
    phases = [p for epoch in state["reporter"]["stats"].values() for p in epoch.values()]
    losses = [phase["loss"] for phase in phases]
    states = [state["model"], state["optimizers"], state["schedulers"]]
    return [tree_map(_as_bytes, states), losses]


def _as_bytes(leaf: object) -> object:
    return leaf.numpy().tobytes() if torch.is_tensor(leaf) else leaf


class Stages:
    """A recipe folder before each stage, after it, and how many writes the stage makes."""

    def __init__(self, folder: Path):
        self.folder = folder
        recipe = miniature.make_with_data(folder, max_epoch=3)
        forked.load()
        self.before, self.after, self.writes = {}, {}, {}
        for verb, words in VERBS.items():
            self.before[verb] = Path(shutil.copytree(recipe, folder / verb, symlinks=True))
            log = folder / f"{verb}.writes"
            ended = forked.Command(recipe, words, folder / "logs", count_writes(log)).wait()
            assert ended.code == 0, ended.stdout + ended.stderr
            self.after[verb] = written(recipe)
            self.writes[verb] = len(log.read_text())

    def start(self, verb: str, folder: Path, prepare: Callable | None = None) -> forked.Command:
        """Start a stage in a copy of the folder as it was before that stage."""
        if not folder.exists():
            shutil.copytree(self.before[verb], folder, symlinks=True)
        return forked.Command(folder, VERBS[verb], folder.with_suffix(".logs"), prepare)

    def finish(self, verb: str, folder: Path) -> None:
        """Start the stage again, let it end, compare; then it must be up to date."""
        for expected in ("", "up to date"):
            ended = self.start(verb, folder).wait()
            assert ended.code == 0, ended.stdout + ended.stderr
            assert expected in ended.stdout
            assert written(folder) == self.after[verb]
        left = [p for n in ("dump", "data", "exp") for p in (folder / n).rglob(".tmp*")]
        assert not left


def on_write(action: Callable[[int], None]) -> Callable[[], None]:
    """Return what makes a process call ``action(n)`` before its n-th change of a file here."""

    def prepare() -> None:
        here, seen = os.getcwd(), [0]

        def hook(event: str, arguments: tuple) -> None:
            if event not in WRITES or (event == "open" and not writes(arguments[2])):
                return
            place = arguments[1] if event == "os.symlink" else arguments[0]
            if isinstance(place, int) or not os.path.abspath(place).startswith(here):
                return
            seen[0] += 1
            action(seen[0])

        sys.addaudithook(hook)

    return prepare


def writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def count_writes(log: Path) -> Callable[[], None]:
    """Return what makes a process append a character to ``log`` at every write."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return on_write(lambda n: os.write(stream, b".") and None)


def die_at_write(number: int) -> Callable[[], None]:
    """Return what makes a process kill -9 itself just before its n-th write."""
    return on_write(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)


def die_inside_save(number: int) -> Callable[[], None]:
    """Return what makes a process die when half of its n-th checkpoint is written."""

    def prepare() -> None:
        plain, seen = Path.write_bytes, [0]

        def write(path: Path, content: memoryview) -> int:
            seen[0] += path.suffix == ".pth"
            if seen[0] < number:
                return plain(path, content)
            plain(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        Path.write_bytes = write

    return prepare


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("kill"))


def assert_killed(command: forked.Command) -> None:
    """Wait for its end; then nothing that it started may be left, to write behind our back."""
    assert command.wait().code == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(command.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    command.kill()
    raise AssertionError("processes outlive the command that started them")


def points(count: int, wanted: int) -> list[int]:
    """Spread ``wanted`` of the writes 1 .. count, the first and the last among them."""
    if count <= wanted:
        return list(range(1, count + 1))
    return sorted({1 + round(k * (count - 1) / (wanted - 1)) for k in range(wanted)})


@pytest.mark.parametrize("verb", VERBS)
def test_killed_before_a_write(stages, verb, tmp_path):
    # Each start of stage 2 imports torch anew in its processes.
    for number in points(stages.writes[verb], 3 if verb == "features" else 7):
        folder = tmp_path / f"at{number}"
        assert_killed(stages.start(verb, folder, die_at_write(number)))
        stages.finish(verb, folder)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_killed_before_every_write(stages, verb, tmp_path):
    for number in range(1, stages.writes[verb] + 1):
        folder = tmp_path / f"at{number}"
        assert_killed(stages.start(verb, folder, die_at_write(number)))
        stages.finish(verb, folder)
        shutil.rmtree(folder)


# Three epochs save twice each, the checkpoint and the model; then comes the average.
@pytest.mark.parametrize("number", [1, 2, 3, 6, 7])
def test_killed_inside_a_checkpoint(stages, number, tmp_path):
    folder = tmp_path / "recipe"
    assert_killed(stages.start("train", folder, die_inside_save(number)))
    stages.finish("train", folder)


def test_killed_inside_a_deployed_model(stages, tmp_path):
    folder = tmp_path / "recipe"
    assert_killed(stages.start("deploy", folder, die_inside_save(1)))
    assert not (folder / "exp/tiny/deploy/merged").exists()
    stages.finish("deploy", folder)


def test_killed_in_the_middle_of_an_epoch(stages, tmp_path):
    folder = tmp_path / "recipe"

    def prepare() -> None:
        from espnet_ext.bridge.training import trainer

        plain, seen = trainer.ESPnetTrainer.validate_one_epoch.__func__, [0]

        @classmethod
        def validate(cls: type, *args: object, **kwargs: object) -> None:
            plain(cls, *args, **kwargs)  # the second epoch is trained and validated, not yet saved
            seen[0] += 1
            if seen[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.ESPnetTrainer.validate_one_epoch = validate

    assert_killed(stages.start("train", folder, prepare))
    assert (folder / "exp/tiny/1epoch.pth").exists()
    assert not (folder / "exp/tiny/2epoch.pth").exists()
    stages.finish("train", folder)


def test_killed_while_processes_write_arks(stages, tmp_path):
    folder = tmp_path / "recipe"
    command = stages.start("features", folder)
    while not command.ended() and not any((folder / "dump").rglob("feats.*.ark")):
        time.sleep(0.001)
    command.kill()
    assert_killed(command)
    stages.finish("features", folder)


def test_killed_again_and_again(stages, tmp_path):
    folder = tmp_path / "recipe"
    for delay in (0.3, 0.6, 0.9, 1.2, 0.5, 0.8):
        command = stages.start("train", folder)
        time.sleep(delay)
        command.kill()
        command.wait()
    stages.finish("train", folder)
