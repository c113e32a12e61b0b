"""Files and folders that are whole or absent, whatever happens to their writer."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, atomic_path, in_use, refuse_changed_output

# Replaces the folder "out" and dies, as by kill -9, just before its n-th change of a file.
REPLACE = """
import os, sys
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


# Writes half of "out", then waits for a line.
WRITE = """
from espnet_ext.files import atomic_path
with atomic_path("out") as path:
    path.write_text("half")
    print(path, flush=True)
    input()
    path.write_text("whole")
"""


def test_outputs_are_compared_by_content_or_by_size(tmp_path):
    made, large = tmp_path / "made", tmp_path / "large"
    made.write_text("12"), large.write_text("34")
    stamp = Stamp(tmp_path / "stamp", [], [])
    with pytest.raises(FileNotFoundError):
        stamp.write([made, tmp_path / "missing"])
    stamp.write([made], by_size=[large])
    large.write_text("56")
    assert stamp.is_current()
    refuse_changed_output(made, stamp.path, "again")
    made.write_text("21")
    assert not stamp.is_current()
    with pytest.raises(UserError, match=r"made was changed: .* again"):
        refuse_changed_output(made, stamp.path, "again")
    made.unlink()
    assert not stamp.is_current()


@pytest.fixture
def writer(tmp_path):
    """A process that has written half of the file "out", and where that is."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, tmp_path / process.stdout.readline().strip()
        process.kill()


def write(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def test_another_writer_leaves_the_work_of_a_living_one_alone(writer, tmp_path):
    process, half = writer
    for path in (half, half.parent):  # age does not matter
        os.utime(path, (0, 0))
    write(tmp_path / "out", "mine")
    assert half.read_text() == "half"
    process.communicate("\n")
    assert process.returncode == 0
    assert contents(tmp_path) == {"out": "whole"}


@pytest.mark.parametrize("name", ["out", "another"])
def test_the_work_of_a_killed_writer_is_removed(writer, tmp_path, name):
    process, half = writer
    process.kill()
    process.wait()
    assert half.exists()
    write(tmp_path / name, "mine")
    assert contents(tmp_path) == {name: "mine"}


# A killed writer whose worker lives on for some time.
WITH_WORKER = """
import os, time
from espnet_ext.files import atomic_path
with atomic_path("out") as path:
    path.write_text("half")
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
"""


def test_a_worker_that_outlives_its_killed_writer_keeps_nothing(tmp_path):
    command = [sys.executable, "-c", WITH_WORKER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
        write(tmp_path / "out", "mine")
        assert contents(tmp_path) == {"out": "mine"}
        os.kill(worker, 9)


def test_a_stamp_that_is_current_removes_the_work_of_killed_writers(writer, tmp_path):
    process, half = writer
    (tmp_path / ".tmp-not-ours").write_text("")
    stamp = Stamp(tmp_path / "stamp", None, [])
    stamp.write([])
    assert stamp.is_current()
    assert half.exists()
    process.kill()
    process.wait()
    assert stamp.is_current()
    assert sorted(os.listdir(tmp_path)) == [".tmp-not-ours", "stamp"]


@pytest.mark.parametrize("left", [".lock", "out", ""])
def test_a_writer_killed_at_its_first_steps_leaves_nothing(tmp_path, left):
    folder = tmp_path / ".tmp-abc.out"
    folder.mkdir()
    if left:
        (folder / left).write_text("")
    write(tmp_path / "out", "mine")
    assert contents(tmp_path) == {"out": "mine"}


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    code = "from espnet_ext.files import write_text\nfor n in range(100): write_text('out', 'text')"
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(4)]
    assert [process.wait() for process in writers] == [0] * 4
    assert contents(tmp_path) == {"out": "text"}


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"digest": 1}', "[" * 10**5, "\xff"])
def test_a_damaged_stamp_is_no_stamp(tmp_path, content):
    from espnet_ext.files import Stamp

    stamp = Stamp(tmp_path / "stamp.json", [], [])
    stamp.path.write_text(content, encoding="latin-1")
    assert not stamp.is_current()
    stamp.write([])
    assert stamp.is_current()


TINY = Path("exp/tiny")


def test_a_folder_is_free_once_its_owner_is_killed(tmp_path, monkeypatch):
    """Also where processes that the owner forked live on."""
    monkeypatch.chdir(tmp_path)
    program = (
        "import os, time; from pathlib import Path; from espnet_ext.files import in_use\n"
        "with in_use(Path('exp/tiny')):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as other:
        child = int(other.stdout.readline())
        try:
            with pytest.raises(UserError, match="another process runs in"), in_use(TINY):
                pass
            other.kill()
            other.wait()
            with in_use(TINY):
                assert not list(TINY.iterdir())
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_error_of_the_disk_names_the_file_that_is_written(tmp_path):
    with pytest.raises(OSError, match="No space") as error, atomic_path(tmp_path / "a/b"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "a/b")
