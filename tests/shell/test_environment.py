"""Variables of a user's shell that change what shells, tools and Python do."""

import os
import subprocess
import sys

import pytest

from tests.fixtures import miniature
from tests.fixtures.tree import ROOT

VARIABLES = [
    {"CDPATH": ".:/usr:/"},
    {"POSIXLY_CORRECT": "1"},
    {"GREP_OPTIONS": "--color=always -v"},
    {"GLOBIGNORE": "*"},
    {"BASH_ENV": "/none", "ENV": "/none"},
    {"IFS": "/e"},
    {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONHOME": "/none"},
    {"PYTHONNOUSERSITE": "", "PYTHONSTARTUP": "/none"},
    {"SHELLOPTS": "noglob:noclobber"},
    {"BASHOPTS": "failglob:nocasematch"},
    {"PYTHONHASHSEED": "x"},
    {"PYTHONINSPECT": "1", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error"},
]
RUN_SH = """#!/usr/bin/env bash
# A recipe for tests.
. "{root}/utils/recipe.sh"

config=conf/train_tiny.yaml # FILE, training config
parse_options "$@"

stage 1 "Files" ls -d a*
stage 3 "Sort" bash -c 'grep -c e ref && sort ref'
stage 7 "Score" espnet-ext score --ref ref --hyp hyp --out out
"""


def run(variables, *command, folder=ROOT):
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("variables", VARIABLES, ids=" ".join)
def test_a_recipe_says_the_same(variables):
    command = ("egs/fotaq/asr1/run.sh", "--dry_run", "--stop_stage", "3")
    expected, found = run({}, *command), run(variables, *command)
    assert expected.returncode == 0 and "local/data.py" in expected.stdout
    assert (found.returncode, found.stdout) == (0, expected.stdout), found.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe that scores two texts, and the variables that it runs under."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "conf").mkdir()
    (folder / "conf/train_tiny.yaml").write_text("{}\n")
    for name in ("ref", "hyp", "a 1", "a 2"):
        (folder / name).write_text("u1 \u00e9t\u00e9 eins\nu2 zwei\n", encoding="utf-8")
    (folder / "run.sh").write_text(RUN_SH.format(root=ROOT))
    (folder / "run.sh").chmod(0o755)
    return folder, miniature.environment(folder / "environment")


@pytest.mark.parametrize("variables", VARIABLES, ids=" ".join)
def test_a_recipe_does_the_same(variables, tiny):
    folder, environment = tiny
    found = run({**environment, **variables}, "./run.sh", folder=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    for part in ("a 1\na 2\n", "\n2\nu1 \u00e9t\u00e9 eins\nu2 zwei\n", "WER 0.0", "all done"):
        assert part in found.stdout, found.stdout + found.stderr
    assert found.stderr == ""


@pytest.mark.parametrize("variables", VARIABLES, ids=" ".join)
def test_the_installation_finds_itself(variables, tmp_path):
    """A copy of the script far from everything: it fails at the same place, with the same words."""
    folder = tmp_path / "a b/tools"
    folder.mkdir(parents=True)
    script = folder / "install.sh"
    script.write_text((ROOT / "tools/install.sh").read_text(encoding="utf-8"), encoding="utf-8")
    found = run(variables, "bash", "tools/install.sh", "--help", folder=folder.parent)
    assert found.returncode == 0, found.stderr
    assert "Make tools/venv" in found.stdout
    assert [path.name for path in folder.parent.iterdir()] == ["tools"]


def test_modules_on_pythonpath_do_not_replace_ours(tmp_path):
    for name in ("yaml", "numpy", "espnet_ext"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another module')")
    found = run(
        {"PYTHONPATH": str(tmp_path), "ESPNET_EXT_PYTHONPATH": ""},
        *("egs/fotaq/asr1/run.sh", "--stage", "3", "--stop_stag", "3"),
    )
    assert "did you mean '--stop_stage'?" in found.stderr and "another" not in found.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_verb_prints_is_utf_8(encoding, tmp_path):
    for name in ("ref", "hyp"):
        (tmp_path / name).write_text("u1 \u00e9t\u00e9\n", encoding="utf-8")
    words = ("score", "--ref", "ref", "--hyp", "hyp", "--out", "\u00e9")
    command = (sys.executable, "-m", "espnet_ext.cli.main", *words)
    found = run({"PYTHONIOENCODING": encoding, "LC_ALL": "C"}, *command, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "WER 0.0" in found.stdout
