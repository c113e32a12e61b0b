"""One finished recipe for all files of this folder, which one process runs."""

import re
import shutil

import pytest

from tests.fixtures.finished import Recipes


@pytest.fixture(scope="session")
def recipes(tmp_path_factory):
    return Recipes(tmp_path_factory.mktemp("bad_input"))


@pytest.fixture
def copy(recipes, request):
    """Make a copy of the recipe, removed at the end."""
    name = re.sub(r"\W+", "_", request.node.name)
    yield lambda *without: recipes.copy(name, without)
    shutil.rmtree(recipes.folder / "copies" / name, ignore_errors=True)
