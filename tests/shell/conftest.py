"""A recipe whose run.sh is the real one."""

from pathlib import Path

import pytest

from tests.fixtures.recipe_sh import Recipe


@pytest.fixture
def recipe(tmp_path: Path):
    """A recipe in a folder of its own and an environment that seems to be installed."""
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    stub = venv / "espnet-ext"
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    return Recipe(tmp_path)
