"""A disk that is full or fills: one line, a non-zero exit, nothing lost."""

import errno
import os
import sys
from collections.abc import Callable

import pytest

from tests.fixtures.disks import OWN, run_on_full_disk, small_disk
from tests.fixtures.finished import VERBS, complains


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


@pytest.mark.parametrize("verb", VERBS)
def test_no_space_left(copy, verb):
    without, place = OWN[verb]
    folder = copy(without)
    line = complains(folder, VERBS[verb], full_disk(folder / place))
    assert "no space left on the disk" in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills(recipes, verb, tmp_path):
    """A real disk, filled so that the stage can start but not end."""
    with small_disk(tmp_path / "disk") as disk:
        assert run_on_full_disk(recipes, disk, verb, ROOM.get(verb, 4096)).code == 1


# Bytes that are free: enough for the small files, not for the large.
ROOM = {"train": 300_000, "deploy": 65_536}
