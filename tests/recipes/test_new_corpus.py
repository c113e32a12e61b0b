"""docs/new_corpus.md, followed to the letter in a copy of the tree, on a few files of speech."""

import os
import re
import subprocess
import sys

import pytest

from espnet_ext.data.corpora.folds import read_folds
from espnet_ext.data.kaldi_dir import validate_data_dir
from tests.fixtures import forked, miniature
from tests.fixtures.tree import ROOT, copy_parts

PAGE = (ROOT / "docs/new_corpus.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`((?:egs|tests)/\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S))
RECIPE = "egs/harbour/asr1"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what recipes need, with the files of the page in it."""
    root = tmp_path_factory.mktemp("tree")
    parts = ("espnet_ext", "egs/conf", "tests/fixtures", "utils", "tools/install.sh")
    copy_parts(root, *parts)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / RECIPE / "run.sh").chmod(0o755)
    return root


def call(tree, folder, *words):
    done = subprocess.run(
        words,
        cwd=tree / folder,
        env=miniature.environment(tree / "environment")
        | dict.fromkeys(("PYTHONPATH", "ESPNET_EXT_PYTHONPATH"), str(tree)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def corpus(tree, folder):
    """The corpus that the page's own test writes; every text with a translation."""
    code = f"""
from pathlib import Path
from tests.recipes.test_harbour_data import harbour
harbour(Path({str(folder)!r}))
"""
    call(tree, ".", sys.executable, "-c", code)
    table = folder / "sentences.tsv"
    head, *rows = table.read_text().splitlines()
    rows = [f"{row}\tHere: {row.rpartition('\t')[2]}" for row in rows]
    table.write_text("\n".join([f"{head}\ten", *rows]) + "\n")
    return folder


def test_the_page_has_all_files_of_a_recipe():
    assert {name.rpartition("/")[2] for name in FILES if name.startswith(RECIPE)} == {
        "run.sh",
        "data.py",
        "train_conformer_xs.yaml",
        "train_hrf_conformer_xs.yaml",
        "train_nested_whisper_tiny_m.yaml",
    }


def test_code_of_the_page_is_formatted_and_short(tree):
    names = [name for name in FILES if name.endswith(".py")]
    for name in (["check"], ["format", "--check"]):
        call(tree, ".", "ruff", *name, "--config", str(ROOT / "pyproject.toml"), *names)
    assert len(FILES[f"{RECIPE}/local/data.py"].splitlines()) <= 120


def test_the_tests_of_the_page_pass(tree):
    (name,) = (name for name in FILES if name.startswith("tests/"))
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", name)
    assert "2 passed" in call(tree, ".", sys.executable, *words)


def test_its_configs_pass_check(tree):
    forked.load()
    for folder, count in (("asr1", 3), ("spk1", 1)):
        recipe = tree / "egs/harbour" / folder
        configs = tuple(str(path) for path in sorted((recipe / "conf").glob("*.yaml")))
        done = forked.Command(recipe, ("check", *configs), tree / "logs").wait()
        assert done.code == 0, done.stderr
        assert done.stdout.count(": ok, ") == count


def test_its_script_runs_stage_1(tree):
    words = ["egs/harbour/asr1/run.sh", "--corpus", "corpus", "--stop_stage", "1"]
    corpus(tree, tree / "corpus")
    script = tree / RECIPE / "local/data.py"
    # The miniature has other counts.
    script.write_text(re.sub(r"COUNTS = .*", "COUNTS: dict = {}", script.read_text()))
    assert "data/train: " in call(tree, ".", *words)
    assert "up to date" in call(tree, ".", *words)
    assert "== stage 8: Report" in call(tree, ".", words[0], "--dry_run")


def test_its_classifier_and_its_translator(tree, tmp_path):
    root = corpus(tree, tmp_path / "corpus")
    sets = {}
    for task in ("spk1", "st1"):
        (tmp_path / task).mkdir()
        script = tree / "egs/harbour" / task / "local/data.py"
        words = (sys.executable, str(script), "--corpus", str(root), "--uncounted", "--nj", "1")
        call(tree, str(tmp_path / task), *words)
        assert "up to date" in call(tree, str(tmp_path / task), *words)
        found = (tmp_path / task / "data").glob("*/wav.scp")
        sets[task] = {
            path.parent.name: validate_data_dir(path.parent, root=tmp_path / task) for path in found
        }
    assert sets["spk1"].keys() == {"all", "train", "dev", "test"}
    for found in sets["spk1"].values():
        assert {u.label for u in found} == {"s0", "s1", "s2"}
    assert read_folds(tmp_path / "spk1/data", "part") == ["part-1", "part-2", "part-3"]
    translated = [u for found in sets["st1"].values() for u in found]
    assert len(translated) > 15
    assert all(u.translation("en").startswith("Here: ") for u in translated)
    assert os.listdir(tmp_path / "st1") == ["data"]
