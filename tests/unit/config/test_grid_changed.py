"""Grid files with odd names and changed letters: read, or refused in one line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.config.grid import read_grid
from espnet_ext.errors import UserError


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "train_x.yaml").write_text("encoder: conformer\n")

    def write(text):
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return path

    return write


def test_systems_may_be_called_no_or_like_a_number(grid):
    path = grid(
        "seeds: [1]\nbaseline: no\nsystems:\n  no: {config: train_x.yaml}\n"
        "  1.10: {config: train_x.yaml, than: ['1.10', no]}\n".replace("'1.10', ", "")
    )
    assert [system.name for system in read_grid(path).systems] == ["no", "1.10"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seeds: [1]\nsystems:\n  ../x: {config: train_x.yaml}\n", "a name has no blank"),
        ("seeds: [1]\nsystems:\n  a/b: {config: train_x.yaml}\n", "a name without '/'"),
        ("seeds: [1]\nsystems:\n  a: {config: train_x.yaml}\n  a: {config: b}\n", "twice"),
        ("seeds: [1]\npart: ../x\nsystems:\n  a: {config: train_x.yaml}\n", "a name has no blank"),
        (
            "seeds: [1]\nsystems:\n  a: {config: train_x.yaml, vary: {x/../../y: [1]}}\n",
            "a name without '/'",
        ),
        (
            f"seeds: [1]\nsystems:\n  a: {{config: train_x.yaml, vary: {{x: [{300 * 'b'}]}}}}\n",
            "over 200 bytes",
        ),
        ("seeds: [1]\nbaseline: 1.10\nsystems:\n  1.10: {config: train_x.yaml}\n", "quote one"),
        ("seeds: [[1]]\nsystems:\n  a: {config: train_x.yaml}\n", "seeds"),
        ("seeds: [1]\nsystems:\n  a: {config: 0}\n", "config"),
        ("seeds: [1]\nsystems:\n  a: {config: train_x.yaml, vary: 3}\n", "vary"),
        ("seeds: 1\nsystems: 2\n", "seeds|systems"),
    ],
)
def test_grids_that_are_refused(grid, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_grid(grid(text))
    assert "\n" not in str(error.value)


WHOLE = """split: voice
seeds: [1, 2]
part: test
baseline: light
systems:
  light: {config: train_x.yaml}
  hrf: {config: train_x.yaml, vary: {encoder_conf.hrf.ratio: [2, 4]}, after: light, than: [light]}
"""
changes = st.lists(
    st.tuples(st.integers(0, len(WHOLE) - 1), st.sampled_from("{}[]:,-'\"#&*!|>%@ \n\t0aé.~?")),
    min_size=1,
    max_size=6,
)


def grid_survives(folder: Path, places) -> None:
    """A changed grid is read, or refused in one line."""
    (folder / "train_x.yaml").write_text("encoder: conformer\n")
    content = list(WHOLE)
    for place, letter in places:
        content[place] = letter
    path = folder / "some.yaml"
    path.write_text("".join(content), encoding="utf-8")
    try:
        read_grid(path)
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(places=changes)
def test_changed_grids(tmp_path_factory, places):
    grid_survives(tmp_path_factory.mktemp("grid"), places)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, derandomize=True)
@given(places=changes)
def test_many_changed_grids(tmp_path_factory, places):
    grid_survives(tmp_path_factory.mktemp("grid"), places)
