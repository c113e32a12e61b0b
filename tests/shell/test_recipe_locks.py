"""Runs at the same time: what waits, what is refused, and what a kill leaves."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.fixtures.recipe_sh import one_line


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def busy(recipe):
    """The recipe at work in stage 2, and the process id of its command."""
    recipe.work("echo $$ >pid.tmp; mv pid.tmp pid; exec sleep 600")
    with subprocess.Popen(
        recipe.command(),
        env=recipe.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for((recipe.folder / "pid").exists)
        yield process, int((recipe.folder / "pid").read_text())
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_runs_of_one_experiment_are_refused(recipe, busy):
    process, _ = busy
    result = recipe.run()
    assert result.returncode == 1
    assert f"process {process.pid} " in one_line(result.stderr)
    (recipe.folder / "conf" / "train_other.yaml").write_text("{}\n")
    other = recipe.run("--config", "conf/train_other.yaml", "--stage", "4")
    assert other.returncode == 0, other.stderr


def test_two_configs_prepare_the_data_one_after_the_other(recipe, busy):
    first, _ = busy
    (recipe.folder / "conf" / "train_other.yaml").write_text("{}\n")
    recipe.work("echo work of the other")
    options = ("--config", "conf/train_other.yaml", "--stage", "2")
    with subprocess.Popen(
        recipe.command(*options), env=recipe.env, stdout=subprocess.PIPE, text=True
    ) as second:
        assert second.stdout is not None
        lines = [second.stdout.readline() for _ in range(2)]
        assert "waiting for another run" in lines[1]
        assert second.poll() is None
        first.kill()
        rest = second.stdout.read()
    assert second.returncode == 0
    assert "work of the other" in rest


def test_a_killed_run_leaves_nothing_locked_or_running(recipe, busy):
    process, command = busy
    assert is_running(command)
    process.kill()
    process.wait()
    wait_for(lambda: not is_running(command))
    recipe.work("echo resumed")
    result = recipe.run("--stage", "2")
    assert result.returncode == 0, result.stderr
    assert "resumed" in result.stdout
