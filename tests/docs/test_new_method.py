"""docs/new_method.md, followed to the letter in a copy of the repository."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import DOCS, blocks, files, name_of, write_files
from tests.fixtures.tree import copy_parts

(PAGE,) = (page for page in DOCS if name_of(page) == "docs/new_method.md")
FILES = files(PAGE)
INSERTED = [block.text for block in blocks(PAGE, "python") if block.file is None]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    copy_parts(root, "espnet_ext", "tests/contract", "tests/conftest.py", "pyproject.toml")
    write_files(root, FILES)
    imports, trials = INSERTED
    package = root / "espnet_ext/methods/__init__.py"
    text = package.read_text(encoding="utf-8")
    changed, count = re.subn(r"^from espnet_ext\.methods import .*\n", imports, text, flags=re.M)
    assert count == 1
    package.write_text(changed, encoding="utf-8")
    with open(root / "tests/contract/trials.py", "a", encoding="utf-8") as stream:
        stream.write(f"\n{trials}")
    return root


def call(tree, *words):
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass(tree):
    """The contract tests on the smallest module, and the unit test."""
    words = ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/unit"]
    words += ["tests/contract/test_contract.py", "-k", "(scaled and tied) or scaled.py"]
    said = call(tree, *words)
    assert int(re.findall(r"(\d+) passed", said)[0]) > 40


def test_its_code_is_formatted(tree):
    code = [name for name in FILES if name.endswith(".py")]
    call(tree, "ruff", "check", *code)
    call(tree, "ruff", "format", "--check", *code)
    assert len(FILES["espnet_ext/methods/scaled.py"].splitlines()) < 100
