"""utils/recipe.sh, driven through small recipes made on the spot."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash") or "bash"

RUN_SH = """#!/usr/bin/env bash
# A recipe for tests.
. "{root}/utils/recipe.sh"

config=conf/train_tiny.yaml # FILE, training config
sets="test unseen"          # sets to score
corpus=                     # DIR of the corpus
package=                    # FILE, a package
fast=false                  # skip something
rt02=                       # a name with digits
note=                       # free text
parse_options "$@"

{stages}
"""

STAGES = """
stage 1 "Data" bash -c \\
  'echo "config=$0 sets=$1 note=$2 fast=$3 nj=$4"; echo "corpus=$5 package=$6"' \\
  "$config" "$sets" "$note" "$fast" "$nj" "$corpus" "$package"
stage 2 "Work" bash work.sh "${extra[@]}"
stage 4 "Last" echo "the end"
"""


@pytest.fixture
def recipe(tmp_path: Path):
    """A recipe in a folder of its own and an environment that seems to be installed."""
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    stub = venv / "espnet-ext"
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    return Recipe(tmp_path)


class Recipe:
    def __init__(self, tmp_path: Path):
        self.folder = tmp_path / "egs" / "tiny" / "asr1"
        (self.folder / "conf").mkdir(parents=True)
        (self.folder / "conf" / "train_tiny.yaml").write_text("{}\n")
        self.work("echo work: $#: $*")
        self.stages(STAGES)
        self.env = os.environ | {"ESPNET_EXT_VENV": str(tmp_path / "venv")}

    def work(self, text: str) -> None:
        (self.folder / "work.sh").write_text(text + "\n")

    def stages(self, text: str) -> None:
        (self.folder / "run.sh").write_text(RUN_SH.format(root=ROOT, stages=text))
        (self.folder / "run.sh").chmod(0o755)

    def command(self, *options: str) -> list[str]:
        return [BASH, str(self.folder / "run.sh"), *options]

    def run(self, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*options),
            cwd=cwd or "/",
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self, stage: int) -> str:
        return (self.folder / "exp" / "tiny" / "log" / f"stage{stage}.log").read_text()


def one_line(text: str) -> str:
    assert len(text.splitlines()) == 1, text
    return text


def test_all_stages_run_in_the_recipe_folder_and_are_logged(recipe):
    result = recipe.run()
    assert result.returncode == 0, result.stderr
    assert "config=conf/train_tiny.yaml sets=test unseen note= fast=false" in result.stdout
    assert result.stdout.index("work: 0:") < result.stdout.index("the end")
    assert "the end" in recipe.log(4)
    assert "RESULTS.md" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sets", "dev", "--nj", "3"], "sets=dev note= fast=false nj=3"),
        (["--sets=a b", "--nj=3"], "sets=a b note= fast=false nj=3"),
        (["--fast", "--nj=3"], "sets=test unseen note= fast=true nj=3"),
        (["--fast", "false", "--nj", "3"], "sets=test unseen note= fast=false nj=3"),
        (["--note", "it's $HOME; `x`", "--nj=3"], "note=it's $HOME; `x` fast=false nj=3"),
        (["--note=--x=1", "--nj=3"], "note=--x=1 fast=false nj=3"),
        (["--note", "", "--nj=3"], "note= fast=false nj=3"),
    ],
)
def test_options_reach_the_commands(recipe, options, expected):
    result = recipe.run(*options, "--stop-stage", "1")
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stge", "2"], "'--stage'"),
        (["--set", "dev"], "'--sets'"),
        (["--confg=x"], "'--config'"),
        (["--hlp"], "'--help'"),
        (["--stop_stag", "3"], "'--stop_stage'"),
        (["dev"], "'dev'"),
        (["--sets"], "--sets needs a value"),
        (["--sets", "--fast"], "--sets needs a value"),
        (["--stage", "two"], "whole number"),
        (["--config", "conf/train_tny.yaml"], "did you mean 'conf/train_tiny.yaml'?"),
        (["--config", "conf/absent.yaml"], "conf/absent.yaml'; find conf -name 'train_*' lists"),
        (["--ngpu", "90"], "--ngpu 90: nvidia-smi lists "),
        (["--rt_02", "x"], "'--rt02'"),
        (["--threads", "all"], "whole number"),
        (["--ngpu", "all"], "whole number"),
        (["--processes", "all"], "whole number"),
        (["--stage", "9"], "no stage"),
        (["--stage", "3", "--stop_stage", "2"], "no stage"),
    ],
)
def test_a_wrong_option_is_one_line_and_runs_nothing(recipe, options, named):
    result = recipe.run(*options)
    assert result.returncode == 2
    assert named in one_line(result.stderr)
    assert "== stage" not in result.stdout


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (["--max_epoch", "1"], "-- --max_epoch 1"),
        (["--max_epoch=1"], "-- --max_epoch=1"),
        (["--note", "a b", "--batch_bins", "1", "--fast"], "--note a\\ b --fast -- --batch_bins 1"),
        (["--optim", "adam", "--", "--seed", "1"], "-- --optim adam --seed 1"),
    ],
)
def test_an_option_of_espnet_is_refused_with_the_command_that_works(recipe, options, command):
    result = recipe.run(*options)
    assert result.returncode == 2
    assert "options of ESPnet go after a lone --" in one_line(result.stderr)
    assert result.stderr.endswith(f"{recipe.folder}/run.sh {command}\n")
    assert "did you mean" not in result.stderr
    shown = subprocess.run(
        ["bash", "-c", f"{recipe.folder}/run.sh --dry_run {command}"],
        env=recipe.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    "variables",
    [{"CDPATH": "/usr:/"}, {"LC_ALL": "C"}, {"PYTHONHOME": "/none", "PYTHONPATH": "/none"}],
)
def test_the_environment_does_not_change_what_is_proposed(recipe, variables):
    recipe.env |= variables
    assert "did you mean '--stop_stage'?" in one_line(recipe.run("--stop_stag", "3").stderr)


def test_without_python_nothing_is_proposed(recipe, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in "bash basename cut dirname find nproc sed tr".split():
        (tools / name).symlink_to(shutil.which(name) or "")
    recipe.env["PATH"] = str(tools)
    for options in (["--stag", "3"], ["--config", "absent.yaml"]):
        result = recipe.run(*options)
        assert result.returncode == 2
        assert "did you mean" not in one_line(result.stderr)
        assert "lists all" in result.stderr


def test_a_recipe_without_configs_says_so(recipe):
    (recipe.folder / "conf/train_tiny.yaml").unlink()
    result = recipe.run()
    assert result.returncode == 2
    assert "has none; write conf/train_NAME.yaml" in one_line(result.stderr)


def test_standard_stages(recipe):
    recipe.stages("""variant=merged test_sets="a b"
standard_stages 2 3
stage 4 "Another training" echo
standard_stages 5""")
    shown = recipe.run("--dry_run", "--threads", "3", "--stage", "3").stdout.splitlines()
    assert shown[:4] == [
        "== stage 3: Tokens",
        "  espnet-ext tokens conf/train_tiny.yaml ",
        "== stage 4: Another training",
        "  echo ",
    ]
    assert shown[4:-1:2] == [
        "== stage 5: Average and deploy",
        "== stage 6: Decode",
        "== stage 7: Score",
        "== stage 8: Report",
    ]
    assert shown[9] == "  espnet-ext score conf/train_tiny.yaml --sets a\\ b --variant merged "
    recipe.stages("standard_stages")
    shown = recipe.run("--dry_run", "--threads", "3", "--", "--max_epoch", "1").stdout
    assert "train conf/train_tiny.yaml --ngpu 0 --threads 3 -- --max_epoch 1" in shown
    spread = ("--ngpu", "4", "--num_nodes", "2")
    shown = recipe.run("--dry_run", *spread).stdout
    assert "train conf/train_tiny.yaml --ngpu 4 --num_nodes 2 --" in shown
    # Other nodes than the first only train.
    recipe.env["SLURM_NODEID"] = "1"
    shown = recipe.run("--dry_run", *spread).stdout
    assert [line for line in shown.splitlines() if line[:2] == "=="] == ["== stage 4: Train"]
    assert "train conf/train_tiny.yaml --ngpu 0 --" in recipe.run("--dry_run").stdout
    assert "== stage 5" in recipe.run("--dry_run").stdout
    del recipe.env["SLURM_NODEID"]


def test_a_config_is_found_from_where_the_user_stands(recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train_other.yaml").write_text("{}\n")
    result = recipe.run("--config", "mine/train_other.yaml", "--stop_stage", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"config={tmp_path}/mine/train_other.yaml" in result.stdout
    assert (recipe.folder / "exp" / "other" / "log" / "stage1.log").is_file()


def test_paths_start_from_where_the_user_stands(recipe, tmp_path):
    """Files and folders, there already or not; nothing that is no path, whatever lies there."""
    (tmp_path / "corpus").mkdir()
    (recipe.folder / "corpus").mkdir()
    for name in ("test", "a.deb"):
        (tmp_path / name).write_text("")
    options = ("--stop_stage", "1", "--nj=1", "--note", "a.deb")
    given = ("--sets", "test", "--corpus", "corpus", "--package", "a.deb")
    result = recipe.run(*options, *given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sets=test note=a.deb fast" in result.stdout
    assert f"corpus={tmp_path}/corpus package={tmp_path}/a.deb" in result.stdout
    result = recipe.run(*options, "--corpus", "absent", "--package", "/b.deb", cwd=tmp_path)
    assert f"corpus={tmp_path}/absent package=/b.deb" in result.stdout
    # What is not given stays as the recipe has it.
    assert "corpus= package=\n" in recipe.run(*options, "--package", "", cwd=tmp_path).stdout


def test_a_config_of_the_recipe_is_found_from_everywhere(recipe, tmp_path):
    result = recipe.run("--config", "conf/train_tiny.yaml", "--stop_stage", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "config=conf/train_tiny.yaml sets" in result.stdout


def test_without_flock_it_says_what_to_install(recipe, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in "awk basename bash cut date dirname nproc sed tail tee tr".split():
        (tools / name).symlink_to(shutil.which(name) or "")
    recipe.env["PATH"] = str(tools)
    result = recipe.run()
    assert result.returncode == 1
    assert "install the package util-linux" in one_line(result.stderr)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ([], [1, 2, 4]),
        (["--stage", "2"], [2, 4]),
        (["--stop_stage", "2"], [1, 2]),
        (["--stage", "2", "--stop_stage", "3"], [2]),
    ],
)
def test_stage_range(recipe, options, stages):
    result = recipe.run(*options)
    assert result.returncode == 0, result.stderr
    logs = recipe.folder / "exp" / "tiny" / "log"
    assert sorted(path.name for path in logs.iterdir()) == [f"stage{n}.log" for n in stages]


def test_last_line_says_what_to_run_next(recipe):
    result = recipe.run("--stop_stage", "2", "--sets", "dev", "--", "--max_epoch", "3")
    last = result.stdout.splitlines()[-1]
    assert last.startswith("next: ")
    # What it says works when pasted.
    command = last.removeprefix("next: ")
    again = subprocess.run(
        ["bash", "-c", command], env=recipe.env, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "the end" in again.stdout
    assert "work:" not in again.stdout


@pytest.mark.parametrize(("given", "seen"), [(None, ["1", "unset"]), ("3", ["3", "3"])])
def test_threads_are_one_but_for_the_training_and_as_the_user_says(recipe, given, seen):
    recipe.env.pop("OMP_NUM_THREADS", None)
    recipe.env |= {} if given is None else {"OMP_NUM_THREADS": given}
    recipe.work("echo threads: ${OMP_NUM_THREADS-unset}")
    recipe.stages('stage 2 "Features" bash work.sh\nstage 4 "Train" bash work.sh')
    lines = recipe.run().stdout.splitlines()
    assert [x.removeprefix("threads: ") for x in lines if x.startswith("threads: ")] == seen


def test_what_follows_the_dashes_passes_through_unchanged(recipe):
    result = recipe.run("--stage", "2", "--", "--max_epoch", "3", "--sets", "a b", "")
    assert "work: 5: --max_epoch 3 --sets a b" in result.stdout


@pytest.mark.parametrize("code", [1, 3, 137])
def test_exit_code_survives_the_log_and_the_line_resumes(recipe, code):
    recipe.work(f"echo before; echo trouble >&2; exit {code}")
    result = recipe.run("--sets", "dev set")
    assert result.returncode == code
    assert "trouble" in result.stdout
    assert "trouble" in recipe.log(2)
    assert "the end" not in result.stdout
    line = one_line(result.stderr)
    assert "stage 2 (Work)" in line
    assert str(recipe.folder / "exp/tiny/log/stage2.log") in line
    recipe.work("echo mended")
    command = line.split("to resume: ")[1]
    again = subprocess.run(
        ["bash", "-c", command], env=recipe.env, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "mended" in again.stdout
    assert "config=" not in again.stdout


def test_an_error_inside_a_shell_function_stops_it(recipe):
    recipe.stages('two() { false; echo "went on"; }\nstage 1 "Two steps" two\n')
    result = recipe.run()
    assert result.returncode == 1
    assert "went on" not in result.stdout


def test_an_unknown_command_is_told(recipe):
    recipe.stages('stage 1 "Nothing" no-such-command-here\n')
    result = recipe.run()
    assert result.returncode == 127
    assert "stage 1 (Nothing)" in one_line(result.stderr)


def test_dry_run_changes_nothing(recipe):
    recipe.env["ESPNET_EXT_VENV"] = str(recipe.folder / "absent")
    result = recipe.run("--dry_run", "--sets", "a b", "--", "--max_epoch", "3")
    assert result.returncode == 0, result.stderr
    assert "bash work.sh --max_epoch 3" in result.stdout
    assert "work: " not in result.stdout
    assert sorted(p.name for p in recipe.folder.iterdir()) == ["conf", "run.sh", "work.sh"]


def test_help_names_every_option_with_its_comment(recipe):
    recipe.env["ESPNET_EXT_VENV"] = str(recipe.folder / "absent")
    result = recipe.run("--help")
    assert result.returncode == 0, result.stderr
    for (
        name
    ) in "config sets corpus package fast note stage stop_stage ngpu nj dry_run help".split():
        assert f"--{name} " in result.stdout
    assert "skip something" in result.stdout
    assert "A recipe for tests." in result.stdout
    assert "example: " in result.stdout
    assert not (recipe.folder / "exp").exists()


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


# -- Slurm


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
