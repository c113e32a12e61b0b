"""A recipe on a real Slurm of one machine: a chain of stages, a training that is queued again."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.fixtures import miniature, slurm

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def place():
    """A recipe after stage 1, and the variables of a cluster that runs its jobs."""
    if absent := slurm.missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge wants folders that all may enter
        recipe, package, environment = miniature.make(folder)
        config = miniature.write_config(recipe, "tiny", max_epoch=2)
        miniature.write_config(recipe, "long", max_epoch=150)
        words = ["--config", config, "--package", package, "--stop_stage", "3"]
        command = [recipe / "run.sh", *words]
        subprocess.run(command, cwd=recipe, env=environment, check=True)
        with slurm.cluster(folder / "slurm") as variables:
            yield recipe, {**environment, **variables}


def queued(env: dict[str, str]) -> str:
    return subprocess.run(
        ["squeue", "--noheader"], env=env, capture_output=True, text=True, check=True
    ).stdout


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_chain_of_stages(place):
    recipe, env = place
    words = ["--config", "conf/train_tiny.yaml", "--stage", "4", "--launcher", "slurm"]
    words += ["--processes", "2", "--threads", "1", "--sbatch=--oversubscribe"]
    command = [recipe / "run.sh", *words]
    done = subprocess.run(command, cwd=recipe, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not queued(env), 300)
    logs = "\n".join(p.read_text() for p in sorted(recipe.glob("exp/tiny/log/*slurm*")))
    assert (recipe / "exp/tiny/score/merged/ctc_greedy/test.json").is_file(), logs
    record = json.loads((recipe / "exp/tiny/train.json").read_text())
    assert record["device"] == "2 processes of cpu, gloo"


def test_a_training_goes_on_after_its_time_limit(place):
    recipe, env = place
    folder = recipe / "exp/long"
    env = {**env, "PATH": f"{env['ESPNET_EXT_VENV']}/bin:{env['PATH']}"}
    folder.mkdir(parents=True)
    train = ["espnet-ext", "train", "conf/train_long.yaml", "--threads", "1", "--processes", "2"]
    words = ["sbatch", "--parsable", "--output", f"{folder}/job.log"]
    script = recipe.parents[2] / "utils/slurm/train.sh"
    job = subprocess.run(
        [*words, script, *train], cwd=recipe, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    wait_for(lambda: (folder / "3epoch.pth").exists(), 200)
    subprocess.run(["scancel", "--signal=USR1", job], env=env, check=True)
    wait_for(lambda: "PD" in queued(env), 60)
    assert "stopped by SIGUSR1" in (folder / "job.log").read_text()
    # Slurm waits two minutes before it starts a job again.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=env, check=True)
    wait_for(lambda: not queued(env), 300)
    record = json.loads((folder / "train.json").read_text())
    assert record["epochs"] == 150
    assert len(json.loads((folder / "calls.json").read_text())) == 2
