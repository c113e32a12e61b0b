"""What holds for every recipe of the repository, found by looking, not by a list."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from espnet_ext.cli.main import VERBS
from espnet_ext.config.training import load_config
from tests.fixtures.tree import MADE_BY_RUNS, ROOT

EGS = ROOT / "egs"


def _committed(pattern: str) -> list[Path]:
    return sorted(
        path for path in EGS.rglob(pattern) if not MADE_BY_RUNS & set(path.relative_to(EGS).parts)
    )


RECIPES = _committed("run.sh")
CONFIGS = _committed("train_*.yaml")
FRAGMENTS = _committed("*.yaml")

# The same number is the same stage everywhere; numbers from 9 on are a recipe's own.
STAGES = {
    1: "Prepare data",
    2: "Features",
    3: "Tokens",
    4: "Train",
    5: "Average and deploy",
    6: "Decode",
    7: "Score",
    8: "Report",
}
VERB_OF_STAGE = {2: "features", 3: "tokens", 4: "train", 5: "deploy", 7: "score", 8: "report"}


def name_of(path: Path) -> str:
    return str(path.relative_to(EGS))


def run(recipe: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [recipe, *options],
        cwd="/",
        env=os.environ | {"ESPNET_EXT_VENV": "/nonexistent"},  # neither needs an environment
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_there_are_recipes_and_configs():
    assert EGS / "fotaq" / "asr1" / "run.sh" in RECIPES
    assert len(CONFIGS) > 1


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_files_of_conf_are_where_their_kind_belongs(recipe):
    """Only training configs match conf/*.yaml; no two of them have one tag."""
    configs = [path for path in CONFIGS if path.is_relative_to(recipe.parent)]
    others = set(_committed("*.yaml")) - set(CONFIGS)
    others = {path for path in others if path.is_relative_to(recipe.parent)}
    assert {path.parent.name for path in others} <= {"include", "grids"}
    assert not {path.parent.name for path in configs} & {"include", "grids"}
    assert len({path.stem for path in configs}) == len(configs)
    assert len(list((recipe.parent / "conf").glob("*.yaml"))) <= 40


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_dry_run_prints_the_standard_stages(recipe):
    result = run(recipe, "--dry_run", "--", "--max_epoch", "1")
    assert result.returncode == 0, result.stderr
    stages = dict(re.findall(r"^== stage (\d+): (.*)$", result.stdout, re.MULTILINE))
    assert {int(n): t for n, t in stages.items() if int(n) <= 8} == STAGES
    commands = [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(commands) == len(stages)
    assert commands[3][-3:] == ["--", "--max_epoch", "1"]


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_stages_call_verbs_and_scripts_that_exist(recipe):
    result = run(recipe, "--dry_run")
    commands = [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(commands) >= len(STAGES)
    for number, command in enumerate(commands[:8], start=1):
        if command[0] == "espnet-ext":
            assert command[1] in VERBS
            assert command[1] == VERB_OF_STAGE.get(number, command[1])
        else:
            assert command[0] == "python"
            assert (recipe.parent / command[1]).is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_help_has_an_example_and_explains_every_option(recipe):
    result = run(recipe, "--help")
    assert result.returncode == 0, result.stderr
    assert "example: egs/" in result.stdout
    options = re.findall(r"^  --(\w+) +(.*?)(?: \(default: .*\))?$", result.stdout, re.MULTILINE)
    names = {name for name, _ in options}
    assert names >= {"stage", "stop_stage", "config", "ngpu", "nj", "dry_run", "help"}
    assert all(text.strip() for _, text in options), options


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_is_short_executable_and_has_a_readme(recipe):
    assert len(recipe.read_text().splitlines()) <= 24
    assert os.access(recipe, os.X_OK)
    readme = (recipe.parent / "README.md").read_text()
    assert "licence" in readme.lower()
    assert re.search(r"^\*\*Languages? of the speech\.\*\* ", readme, re.MULTILINE)
    assert name_of(recipe) in readme


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_training_config_states_only_its_difference(config):
    lines = [line for line in config.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25
    assert "include" in yaml.safe_load("\n".join(lines))


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_training_config_resolves(config):
    resolved = load_config(config)
    assert resolved.espnet["encoder"]
    assert "include" not in resolved.espnet
    # <encoder>_<size>[_<difference>]
    assert re.search(r"_(xs|s|m|l|paper)(_|$)", resolved.tag), resolved.tag
    if resolved.recipe.baseline:
        recipe = EGS / Path(*config.relative_to(EGS).parts[:2])
        assert f"train_{resolved.recipe.baseline.partition('/')[0]}.yaml" in {
            path.name for path in CONFIGS if path.is_relative_to(recipe)
        }


def test_every_fragment_is_used():
    used = set()
    for path in FRAGMENTS:
        includes = (yaml.safe_load(path.read_text()) or {}).get("include", [])
        for name in [includes] if isinstance(includes, str) else includes:
            used.add((path.parent / name).resolve())
    fragments = {path.resolve() for path in FRAGMENTS if path not in CONFIGS}  # to be included
    fragments = {path for path in fragments if path.parent.name != "grids"}
    assert fragments, "no shared fragments found"
    # What needs a model that the user has is in no config here: a README shows its use.
    shown = "".join(path.read_text() for path in EGS.rglob("README.md"))
    assert {path for path in fragments - used if f"conf/base/{path.name}" not in shown} == set()


@pytest.mark.parametrize("script", _committed("*.py"), ids=name_of)
def test_no_recipe_imports_a_verb(script):
    assert "espnet_ext.cli" not in script.read_text(encoding="utf-8")


def test_no_symbolic_links():
    listing = subprocess.run(
        ["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    assert not [line for line in listing.stdout.splitlines() if line.startswith("120000")]
