"""Every command in the documentation is one that exists, with options and files that exist."""

import argparse
import contextlib
import importlib
import io
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from espnet_ext.cli.main import VERBS, parse
from espnet_ext.config.grid import read_grid
from espnet_ext.config.recipe_errors import PACKAGED, recipe_problems
from espnet_ext.config.training import load_config
from espnet_ext.data.corpora import stage
from espnet_ext.errors import UserError
from espnet_ext.methods.nested_options import parse_name
from tests.docs.commands import Command, commands
from tests.docs.pages import PAGES, RECIPE_PAGES, ROOT, name_of, without_code

# Programs that are not of this repository.
OTHERS = "arecord git head lint-imports mypy node ruff sed shellcheck shfmt xargs".split()
PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*(\.\w+)?|-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_right(page, tree):
    found = commands(page, tree)
    assert found or "```bash" not in page.read_text(encoding="utf-8")
    for command in dict.fromkeys(found):
        check(command, tree)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in RECIPE_PAGES], ids=name_of)
def test_verbs_in_sentences_have_these_options(page):
    for words in re.findall(r"`espnet-ext ([a-z][^`]*)`", without_code(page)):
        verb, *rest = words.split()
        assert verb in VERBS, words
        known = re.findall(r"--[\w-]+", parser_of(verb).format_help())
        for word in rest[: rest.index("--") if "--" in rest else None]:
            assert not word.startswith("--") or word in known, words


def check(command: Command, tree: Path) -> None:
    """Assert that a command would be accepted."""
    words = list(command.words)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[0] in ("srun", "sbatch"):  # with options, what they start
        words = words[next(n for n, word in enumerate(words) if word.endswith(".sh")) :]
    if "utils/slurm/" in words[0]:  # with what it starts
        assert os.access(command.folder / words.pop(0), os.X_OK), command
    program, *rest = words
    if program == "espnet-ext":
        check_verb(command, rest, tree)
    elif program == "source":
        assert rest == ["tools/venv/bin/activate"], command
    elif program == "python":
        script = command.folder / rest[0]
        assert script.is_file(), command
        options = {word for word in rest[1:] if word.startswith("--")}
        text = script.read_text(encoding="utf-8")
        if "corpora.stage import" in text:  # which adds options that all such scripts have
            text += Path(stage.__file__).read_text(encoding="utf-8")
        assert all(f'"{option}"' in text for option in options), command
    elif program.endswith("run.sh") and tree / "egs" in (command.folder / program).parents:
        check_recipe(command, program, rest)
    elif "/" in program:
        path = command.folder / program
        assert path.is_file(), command
        assert os.access(path, os.X_OK), command
        named = [word for word in rest if word.startswith("tests/")]
        assert all((ROOT / name).exists() for name in named), command
    else:
        assert program in OTHERS, command


def check_recipe(command: Command, program: str, rest: list[str]) -> None:
    """Assert that a recipe accepts these words, by a dry run."""
    if "FILE" in rest and rest[rest.index("FILE") - 1] == "--config":
        rest = [word for word in rest if word not in ("--config", "FILE")]
    cut = rest.index("--") if "--" in rest else len(rest)
    if not {"--help", "--dry_run"} & set(rest):
        rest[cut:cut] = ["--dry_run"]
    done = subprocess.run(
        [command.folder / program, *rest],
        cwd=command.folder,
        env=os.environ | {"ESPNET_EXT_VENV": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


def check_verb(command: Command, rest: list[str], tree: Path) -> None:
    """Assert that a verb's parser accepts these words, and that they name what exists."""
    if rest == ["--help"]:
        return
    verb, *words = rest
    assert verb in VERBS, command
    if words == ["--help"]:
        return
    problems = io.StringIO()
    with contextlib.redirect_stderr(problems):
        try:
            args = vars(parse(parser_of(verb), words))
        except SystemExit:
            raise AssertionError(f"{command}: {problems.getvalue()}") from None
    for name in [args.get("config"), *args.get("paths", [])]:
        # Configs below exp/ are written by grids.
        if name is not None and not PLACEHOLDER.fullmatch(name) and not name.startswith("exp/"):
            check_config(command, command.folder / name)
    if "grid" in args:
        read_grid(command.folder / args["grid"])
    if args.get("variant"):
        check_variant(args["variant"])
    if args.get("baseline"):
        tag = args["baseline"].partition("/")[0]
        conf = command.folder / "conf"
        assert list(conf.rglob(f"train_{tag}.yaml")), f"{command}: no config of {tag}"
    if verb == "fetch":
        assert args["model"] in PACKAGED, command


@cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"espnet_ext.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"espnet-ext {verb}")
    module.add_arguments(parser)
    return parser


@cache
def check_config(command: Command, path: Path) -> None:
    if path.is_dir():
        assert list(path.rglob("train_*.yaml")), command
        return
    assert path.is_file(), f"{command}: no {path.name}"
    assert recipe_problems(load_config(path)) == [], command


def check_variant(name: str) -> None:
    if not re.fullmatch(r"plain|shared|merged(\+[842]b)?", name):
        with contextlib.suppress(UserError):
            parse_name(name)
            return
        raise AssertionError(f"{name} is no variant")
