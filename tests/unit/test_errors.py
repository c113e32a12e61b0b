"""What run_cli makes of errors, and options that are numbers."""

import argparse
import os
import shlex
import subprocess
import sys

import pytest

from espnet_ext.cli import features, score
from espnet_ext.errors import UserError, at_least, run_cli


def fail(error: Exception):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("no such set"), "no such set"),
        (UserError("no set 'a\nb'"), "no set 'a b'"),
        (PermissionError(13, "Permission denied", "exp/a\nb"), "Permission denied: exp/a b; give"),
        (PermissionError(13, "Permission denied", "exp/x"), "Permission denied: exp/x; give"),
        (FileExistsError(17, "File exists", "out"), "File exists: out; move it away"),
        (IsADirectoryError(21, "Is a directory", "a", None, "b"), "Is a directory: a and b; "),
        (OSError(28, "No space left on device"), "no space left on the disk that holds"),
        (OSError(5, "Input/output error", "a.ark"), "Input/output error: a.ark; see to it"),
    ],
)
def test_an_error_that_names_a_file_is_one_line(capsys, error, says):
    assert run_cli("espnet-ext x", fail(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("espnet-ext x: error: ")
    assert said.count("\n") == 1
    assert says in said


@pytest.mark.parametrize("error", [OSError("codec"), OSError(5, "I/O"), ValueError("a bug")])
def test_an_error_of_the_program_keeps_its_trace(error):
    with pytest.raises(type(error)):
        run_cli("espnet-ext x", fail(error))


def scored(**over):
    """Run the verb score on two plain files, with some options changed; return the exit code."""
    words = {"ref": "ref", "hyp": "hyp", "out": "out"} | over
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    args = parser.parse_args([word for key in words for word in (f"--{key}", words[key])])
    return run_cli("espnet-ext score", lambda: score.run(args))


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"ref": "folder"}, "folder"),
        ({"hyp": "absent"}, "absent"),
        ({"out": "taken"}, "taken"),
        ({"out": "taken/deeper"}, "taken"),
        pytest.param(
            {"out": "locked/out"},
            "Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere"),
        ),
    ],
)
def test_score_of_files_that_cannot_be_read_or_written(tmp_path, monkeypatch, capsys, over, says):
    monkeypatch.chdir(tmp_path)
    for name in ("ref", "hyp", "taken"):
        (tmp_path / name).write_text("a the cat sat\nb on the mat\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(0o500)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert scored(**over) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert scored() == 0


def test_a_reader_that_has_enough_gets_no_trace():
    script = "from espnet_ext.errors import run_cli; import sys; sys.exit(run_cli('x', lambda: "
    script += "[print('line') for _ in range(100000)]))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert done.stdout == "line\n141\n" and done.stderr == ""


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5", "", "\u0662"])
def test_a_number_of_processes_is_at_least_one(capsys, word):
    parser = argparse.ArgumentParser()
    features.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["x.yaml", f"--nj={word}"])
    assert f"needs a whole number from 1 on, not {word!r}" in capsys.readouterr().err
    assert at_least(0)("0") == 0
