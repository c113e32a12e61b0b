"""A folder that another process uses: one line, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.files import HOLDS
from tests.fixtures import forked
from tests.fixtures.finished import VERBS, complains


def holding(folder: Path) -> subprocess.Popen:
    """A process that runs in exp/tiny, until it reads a line."""
    program = (
        "from pathlib import Path; from espnet_ext.files import in_use\n"
        "with in_use(Path('exp/tiny')): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, cwd=folder, env=os.environ | {HOLDS: ""}, text=True, **pipes)
    assert other.stdout.readline() == "held\n"
    return other


DONE = {
    "train": "exp/tiny/.train.done.json",
    "deploy": "exp/tiny/deploy/.merged.done.json",
    "decode": "exp/tiny/decode/*/*/*/.done.json",
    "score": "exp/tiny/score/*/*/.*.stamp",
    "report": "exp/tiny/.result.stamp",
}


@pytest.mark.parametrize("verb", DONE)
def test_a_folder_in_use_is_refused_and_the_owners_verbs_are_not(copy, verb, monkeypatch):
    folder = copy(DONE[verb])
    with holding(folder) as other:
        line = complains(folder, VERBS[verb])
        assert line == "another process runs in exp/tiny; wait for it or end it"
        if verb == "score":
            monkeypatch.setenv(HOLDS, "exp/tiny")
            logs = folder.with_suffix(".logs")
            assert forked.Command(folder, VERBS[verb], logs).wait().code == 0
            monkeypatch.delenv(HOLDS)
        other.communicate("\n")
    if verb == "score":
        assert forked.Command(folder, VERBS[verb], folder.with_suffix(".logs")).wait().code == 0
