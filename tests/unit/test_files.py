"""Files and folders that are whole or absent, whatever happens to their writer."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from espnet_ext.data import audio
from espnet_ext.files import atomic_path, temporary_name

# Replaces the folder "out" and dies, as by kill -9, just before its n-th change of a file.
REPLACE = """
import os, sys
from espnet_ext.data import audio
from espnet_ext.files import atomic_path
left = int(sys.argv[1])
def hook(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        left -= 1
        if left == 0:
            os._exit(9)
with atomic_path("out") as folder:
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text("new")
    sys.addaudithook(hook)
"""


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in "abcd":
        (folder / name).write_text("old")
    return folder


def test_a_folder_is_whole_or_absent_wherever_its_writer_dies(old, tmp_path):
    was, new = contents(old), dict.fromkeys("abc", "new")
    seen = set()
    for number in range(1, 20):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for name, text in was.items():
            (old / name).write_text(text)
        words = [sys.executable, "-c", REPLACE, str(number)]
        ended = subprocess.run(words, cwd=tmp_path, check=False)
        found = contents(old) if old.exists() else None
        assert found in (None, was, new)
        seen.add(str(found))
        with atomic_path(old) as folder:
            folder.mkdir()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if ended.returncode == 0:
            break
    assert len(seen) == 3
    assert ended.returncode == 0


def test_a_writer_that_makes_nothing_leaves_the_old_folder(old, tmp_path):
    was = contents(old)
    with pytest.raises(FileNotFoundError), atomic_path(old):
        pass
    assert contents(old) == was
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_is_replaced_and_what_it_names_stays(old, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(old)
    with atomic_path(link) as folder:
        folder.mkdir()
    assert contents(link) == {}
    assert len(contents(old)) == 4
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


@pytest.mark.parametrize(
    ("machine", "process", "age", "stays"),
    [
        ("here", "dead", 0, False),
        ("here", "alive", 1e6, True),
        ("another", "dead", 0, True),
        ("another", "alive", 1e6, False),
        ("restarted", "alive", 0, False),
    ],
)
def test_only_writers_of_this_machine_are_judged_by_their_process(
    tmp_path, machine, process, age, stays
):
    ended = subprocess.Popen(["true"])
    ended.wait()
    number = {"dead": ended.pid, "alive": os.getppid()}[process]
    host, boot, _ = temporary_name(tmp_path / "x").name.removeprefix(".tmp").split("-")
    host = "01234567" if machine == "another" else host
    boot = "01234567" if machine == "restarted" else boot
    left = tmp_path / f".tmp{host}-{boot}-{number}.out"
    left.write_text("half")
    os.utime(left, (left.stat().st_atime, left.stat().st_mtime - age))
    with atomic_path(tmp_path / "out") as path:
        path.write_text("whole")
    assert left.exists() == stays


def test_a_clip_is_written_under_a_name_that_others_can_judge(tmp_path, monkeypatch):
    path, seen, replace = tmp_path / "a.flac", [], os.replace

    def spy(source, target):
        seen.append((source, target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    assert audio.write_flac(path, np.zeros(1600, np.float32), 16000) == 0.1
    assert seen == [(temporary_name(path), path)]
    assert os.listdir(tmp_path) == ["a.flac"]
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audio.write_flac(path, np.zeros(1600, np.float32), 16000)
    assert os.listdir(tmp_path) == ["a.flac"]
