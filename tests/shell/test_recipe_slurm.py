"""Recipes and scripts under Slurm, which programs stand in for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.recipe_sh import ROOT, one_line


def with_sbatch(recipe, code: int = 0) -> Path:
    """Put a program sbatch in front, which lists its words and numbers its jobs."""
    folder = recipe.folder / "programs"
    folder.mkdir()
    listed = folder / "jobs"
    program = folder / "sbatch"
    program.write_text(
        "#!/bin/bash\n"
        f"printf '%s|' \"$@\" >>{listed}; echo >>{listed}\n"
        f"[ {code} -eq 0 ] || {{ echo 'no such partition' >&2; exit {code}; }}\n"
        f"echo $((100 + $(wc -l <{listed}))); exit 0\n"
    )
    program.chmod(0o755)
    recipe.env["PATH"] = f"{folder}:{recipe.env['PATH']}"
    return listed


def test_slurm_gets_a_chain_of_stages(recipe):
    recipe.stages("test_sets=a\nstandard_stages")
    listed = with_sbatch(recipe)
    words = ("--launcher", "slurm", "--ngpu", "4", "--num_nodes", "2", "--stop_stage", "5")
    result = recipe.run(*words, "--sbatch=--partition gpu --time 9", "--", "--max_epoch", "1")
    assert result.returncode == 0, result.stderr
    jobs = [line.split("|")[:-1] for line in listed.read_text().splitlines()]
    assert [job[job.index("--job-name") + 1] for job in jobs] == [
        f"tiny.stage{number}" for number in (2, 3, 4, 5)
    ]
    starts = [job[job.index("--dependency") + 1] if "--dependency" in job else "" for job in jobs]
    assert starts == ["", "afterok:101", "afterok:102", "afterok:103"]
    assert all(job[job.index("--partition") + 1] == "gpu" for job in jobs)
    own = [job[job.index("9") + 1 :] for job in jobs]
    assert own[0][0] == "--wrap"  # Slurm would run a copy of a script, elsewhere
    assert "run.sh --stage 2 --stop_stage 2 " in own[0][1]
    assert "--launcher" not in own[0][1] and "--sbatch" not in own[0][1]
    assert own[2][:5] == ["--nodes", "2", "--gpus-per-node", "4", own[2][4]]
    assert own[2][4].endswith("utils/slurm/train.sh")
    train = " ".join(own[2][5:])
    assert train == (
        "espnet-ext train conf/train_tiny.yaml --ngpu 4 --num_nodes 2 -- --max_epoch 1"
    )
    assert "job 104" in result.stdout and "squeue --me" in result.stdout


def test_slurm_may_refuse_and_may_be_absent(recipe):
    recipe.stages("test_sets=a\nstandard_stages")
    assert "sbatch" in recipe.run("--launcher", "slurm", "--dry_run").stdout
    assert not (recipe.folder / "exp").exists()
    if shutil.which("sbatch") is None:
        result = recipe.run("--launcher", "slurm")
        assert (result.returncode, "no sbatch here" in one_line(result.stderr)) == (1, True)
    with_sbatch(recipe, code=1)
    result = recipe.run("--launcher", "slurm")
    assert result.returncode == 1
    assert "sbatch does not take stage 2" in result.stderr
    result = recipe.run("--launcher", "slrm")
    assert "known is slurm" in one_line(result.stderr)


def script(name: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a job script with programs srun and scontrol that print their words."""
    for program in ("srun", "scontrol"):
        path = folder / program
        path.write_text(
            f'#!/bin/bash\necho {program} "$@"\n[ {program} = scontrol ] || exit $CODE\n'
        )
        path.chmod(0o755)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **variables}
    return subprocess.run(
        [ROOT / "utils/slurm" / name, *words], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (75, True)])
def test_a_training_that_was_told_to_stop_is_queued_again(code, queued, tmp_path):
    done = script("train.sh", tmp_path, "espnet-ext", "train", "c.yaml", CODE=str(code))
    assert "srun --kill-on-bad-exit=1 espnet-ext train c.yaml" in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == queued
    assert done.returncode == (0 if queued else code)


def test_parts_of_an_array(tmp_path):
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "9"}
    done = script("parts.sh", tmp_path, "echo", "a b", "c", **array)
    assert done.stdout == "a b c --part 3/9\n"
    for name in ("parts.sh", "train.sh"):
        help_text = script(name, tmp_path)
        assert help_text.returncode == 2 and "usage: sbatch" in help_text.stdout
