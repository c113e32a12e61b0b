"""A disk that is full or fills: one line, a non-zero exit, nothing lost."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import forked
from tests.fixtures.finished import VERBS, complains, content


def full_disk(folder: str) -> Callable[[], None]:
    """Return what makes every opening of a file to be written under ``folder`` fail."""

    def prepare() -> None:
        place = os.path.abspath(folder)

        def hook(event: str, arguments: tuple) -> None:
            if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            path = os.path.abspath(os.fsdecode(arguments[0]))
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and path.startswith(place) and not path.endswith(".log"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        sys.addaudithook(hook)

    return prepare


OWN = {
    "features": ("dump", "dump"),
    "tokens": ("data/token_list", "data/token_list"),
    "train": ("exp", "exp"),
    "deploy": ("exp/tiny/deploy", "exp"),
    "decode": ("exp/tiny/decode", "exp"),
    "score": ("exp/tiny/score", "exp"),
    "report": ("exp/tiny/*result*", "exp"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_space_left(copy, verb):
    without, place = OWN[verb]
    folder = copy(without)
    line = complains(folder, VERBS[verb], full_disk(folder / place))
    assert "no space left on the disk" in line


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mount a disk of that size; skip where that is not permitted."""
    folder.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size={kilobytes}k none '{folder}' 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills(recipes, verb, tmp_path):
    """A real disk, filled so that the stage can start but not end."""
    without, _ = OWN[verb]
    with small_disk(tmp_path / "disk", 8192) as disk:
        folder = disk / "recipe"
        shutil.copytree(recipes.whole, folder, symlinks=True)
        for path in list(folder.glob(without)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = content(folder)
        free = shutil.disk_usage(disk).free
        with open(disk / "ballast", "wb") as ballast:
            ballast.write(bytes(max(0, free - ROOM.get(verb, 4096))))
        ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert ended.code == 1, ended.stdout
        lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]
        assert len(lines) == 1, ended.stderr
        assert "no space left on the disk" in lines[0]
        after = content(folder)
        assert {name: after.get(name) for name in before} == before
        (disk / "ballast").unlink()
        ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert ended.code == 0, ended.stdout + ended.stderr


# Bytes that are free: enough for the small files, not for the large.
ROOM = {"train": 300_000, "deploy": 65_536}
