"""The fault harness: one finished recipe for all its tests, and a count of what each fault did.

With the variable ESPNET_EXT_FAULTS set to a file, every fault appends a line to it: its kind and
how it ended. ``benchmarks/faults.py`` makes a table of them.
"""

import json
import os
from collections.abc import Callable

import pytest

from tests.fixtures.finished import Recipes

RECORD = "ESPNET_EXT_FAULTS"


@pytest.fixture(scope="session")
def recipes(tmp_path_factory):
    return Recipes(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def tally() -> Callable[[str, str], None]:
    """A function that counts a fault by its kind and its outcome."""

    def count(kind: str, outcome: str) -> None:
        if path := os.environ.get(RECORD):
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps([kind, outcome]) + "\n")

    return count
