"""Each kind of bad input gives the line of the published table, and leaves nothing."""

import os

import pytest

from tests.faults.bad_inputs import CASES, made, recorded, removed
from tests.faults.conftest import RECORD
from tests.fixtures import forked
from tests.fixtures.finished import added, content, one_line
from tests.fixtures.tree import ROOT

TABLE = ROOT / "results/benchmarks/bad_input.json"


def check(name: str, recipes, tally) -> None:
    case = CASES[name]
    folder = made(case, recipes, "bad")
    before = content(folder)
    ended = forked.Command(folder, case.words, folder.with_suffix(".logs")).wait()
    after = content(folder)
    removed(folder)
    line = one_line(ended, case.words[0])
    assert {n: after.get(n) for n in before} == before
    assert not added(set(after) - set(before))
    tally("bad input", "refused by name")
    said = line.partition(": error: ")[2].replace(f"{folder}/", "")
    row = [name, case.words[0], said]
    tally("row", row)
    if RECORD not in os.environ:
        assert recorded(TABLE)[name] == row


@pytest.mark.parametrize("name", list(CASES)[::6])
def test_some_bad_inputs(name, recipes, tally):
    check(name, recipes, tally)


@pytest.mark.faults
@pytest.mark.parametrize("name", [n for k, n in enumerate(CASES) if k % 6])
def test_all_other_bad_inputs(name, recipes, tally):
    check(name, recipes, tally)


def test_the_table_has_all_kinds():
    assert list(recorded(TABLE)) == list(CASES)
