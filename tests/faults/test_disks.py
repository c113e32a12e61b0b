"""Disks that fill at a random moment, and folders that cannot be written."""

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.endings import one_line
from tests.fixtures import forked
from tests.fixtures.finished import VERBS, content
from tests.unit.bad_input.test_full_disk import OWN, small_disk

DISK = 8192  # kilobytes


def fills(recipes, disk: Path, verb: str, generator: random.Random) -> str:
    """Run a stage on a disk with a random number of free bytes, then with room for all."""
    folder = disk / "recipe"
    shutil.copytree(recipes.whole, folder, symlinks=True)
    for path in list(folder.glob(OWN[verb][0])):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(folder)
    free = shutil.disk_usage(disk).free
    room = int(2 ** generator.uniform(10, 20))
    with open(disk / "ballast", "wb") as ballast:
        ballast.write(bytes(max(0, free - room)))
    ended = forked.Command(folder, VERBS[verb], disk.parent / "logs").wait()
    if ended.code:
        assert "no space left on the disk" in one_line(ended, verb)
        after = content(folder)
        assert {name: after.get(name) for name in before} == before
    (disk / "ballast").unlink()
    again = forked.Command(folder, VERBS[verb], disk.parent / "logs").wait()
    assert again.code == 0, again.stdout + again.stderr
    return "resumed" if ended.code else "no effect"


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_at_any_moment(recipes, verb, seed, tmp_path, tally):
    with small_disk(tmp_path / "disk", DISK) as disk:
        tally("full disk", fills(recipes, disk, verb, random.Random(f"{verb} {seed}")))


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
    with small_disk(tmp_path / "disk", DISK) as disk:
        folder = disk / "recipe"
        shutil.copytree(recipes.whole, folder, symlinks=True)
        for path in list(folder.glob(OWN[verb][0])):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with read_only(disk):
            ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        line = one_line(ended, verb)
        assert "Read-only file system: " in line and "choose a folder that can be written" in line
        tally("read-only folder", "refused by name")
        again = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert again.code == 0, again.stdout + again.stderr
