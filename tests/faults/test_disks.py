"""Disks that fill at a random moment, and folders that cannot be written."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import forked
from tests.fixtures.disks import OWN, run_on_full_disk, small_disk
from tests.fixtures.finished import VERBS, one_line


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_at_any_moment(recipes, verb, seed, tmp_path, tally):
    room = int(2 ** random.Random(f"{verb} {seed}").uniform(10, 20))
    with small_disk(tmp_path / "disk") as disk:
        ended = run_on_full_disk(recipes, disk, verb, room)
    tally("full disk", "resumed" if ended.code else "no effect")


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Nothing on a disk can be written, not even by root."""
    assert os.system(f"mount -o remount,ro '{disk}'") == 0
    try:
        yield
    finally:
        os.system(f"mount -o remount,rw '{disk}'")


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_cannot_be_written(recipes, verb, tmp_path, tally):
    with small_disk(tmp_path / "disk") as disk:
        folder = recipes.copy_to(disk / "recipe", (OWN[verb][0],))
        with read_only(disk):
            ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        line = one_line(ended, verb)
        assert "Read-only file system: " in line and "choose a folder that can be written" in line
        tally("read-only folder", "refused by name")
        again = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert again.code == 0, again.stdout + again.stderr
