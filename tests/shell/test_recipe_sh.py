"""utils/recipe.sh, driven through small recipes made on the spot."""

import shutil
import subprocess

import pytest

from tests.fixtures.recipe_sh import one_line


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
        (["--config", "conf/absent.yaml"], "/conf -name 'train_*' lists all"),
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
