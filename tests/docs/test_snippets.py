"""Configs and Python in the documentation work; the front pages are short."""

import importlib.util
import os
from pathlib import Path

import pytest
import yaml

from espnet_ext.bridge.configs.signatures import cached_signatures
from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import load_config
from tests.docs.pages import DOCS, FOLLOWED, PAGES, README, ROOT, blocks, name_of

PYTHON = [page for page in PAGES if blocks(page, "python")]
YAML = [block for page in PAGES for block in blocks(page, "yaml")]
CONFIGS = [block for block in YAML if "include:" in block.text]


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_runs(page, monkeypatch):
    """The blocks of a page follow one another."""
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in blocks(page, "python"):
        code = compile(block.text, str(block), "exec")
        if block.file is None and name_of(page) not in FOLLOWED:
            exec(code, names)
    if page.name == "library.md":
        assert names["merged"] is not names["encoder"]


def test_the_library_example_is_there():
    text = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    assert "apply_hrf" in text
    assert "assert_close" in text


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_of_a_known_kind(block):
    found = yaml.safe_load(block.text)
    assert {"include", "systems", "on", "message"} & {str(key) for key in found}


@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_a_config_passes_the_check_of_keys(block, tree):
    """It is put where its includes are, in its recipe if the page names one."""
    folder = (tree / block.file).parent if block.file else place(block.text, tree)
    path = folder / "train_snippet.yaml"
    path.write_text(block.text, encoding="utf-8")
    try:
        config = load_config(path)
    finally:
        path.unlink()
    if not block.file or "/new_" not in name_of(block.page):  # those of other tests
        assert cached_signatures().problems(config) == []
    assert recipe_problems(config) == []


def place(text: str, tree: Path) -> Path:
    """A folder of configs from which all includes exist."""
    included = yaml.safe_load(text)["include"]
    included = [included] if isinstance(included, str) else included
    folders = sorted({path.parent for path in tree.glob("egs/*/*/conf/**/train_*.yaml")})
    return next(f for f in folders if all((f / name).is_file() for name in included))


def test_the_config_reference_is_current(monkeypatch):
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools/config_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs/config_reference.md").read_text(encoding="utf-8")
    assert written == module.page(), "run python tools/config_reference.py"


@pytest.mark.parametrize(("page", "most"), [(README, 150), (ROOT / "RESULTS.md", 200)], ids=str)
def test_front_pages_are_short(page, most):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= most
    assert max(map(len, lines)) <= 160


def test_pictures_are_there():
    pictures = sorted((ROOT / "docs/images").iterdir())
    shown = "".join(page.read_text(encoding="utf-8") for page in [README, *DOCS])
    assert pictures
    assert all(os.path.basename(path) in shown for path in pictures)
