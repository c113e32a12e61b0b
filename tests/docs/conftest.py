"""A copy of what commands in the documentation name, with the files that its pages write."""

import pytest

from tests.docs import pages
from tests.fixtures.tree import copy_parts


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("documented")
    names = ("egs", "utils", "benchmarks", ".ci", "tests/run.sh", "tools/install.sh")
    copy_parts(root, *names, "tools/config_reference.py")
    for page in pages.DOCS:
        pages.write_files(root, pages.files(page))
    return root
