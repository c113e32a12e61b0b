"""Grids and configs of the repository with absurd values: read, or refused in one line."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.config.grid import read_grid
from espnet_ext.config.includes import resolve_includes
from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import read_config
from espnet_ext.errors import UserError
from espnet_ext.yaml_files import read_mapping
from tests.fixtures.examined import examine_file
from tests.fixtures.tree import ROOT

CONFIGS = sorted((ROOT / "egs").rglob("train_*.yaml"))
GRIDS = sorted((ROOT / "egs").rglob("conf/grids/*.yaml"))
VALUES = [
    *(None, True, 0, -1, 1, 10**12, 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *("", "x", "no", "../x", "a b", "1e400", "\u00e9" * 300, "${x}", "%s", "{}", "2026-02-30"),
    *([], [0], [[1]], [None], [{"a": [{}]}], {}, {"a": 1}, {"": 1}, {"x": {"y": []}}, {"..": 1}),
]
Changes = list[tuple[int, Any]]
changes = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(VALUES)), min_size=1, max_size=3
)


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    """Where every value of a tree is."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield (*above, key)
        if isinstance(tree[key], dict | list):
            yield from places(tree[key], (*above, key))


def changed(tree: dict[str, Any], wanted: Changes) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for number, value in wanted:
        found = list(places(tree))
        *parents, last = found[number % len(found)]
        inner: Any = tree
        for key in parents:
            inner = inner[key]
        inner[last] = copy.deepcopy(value)
    return tree


def written(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "train_changed.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def grid_is_one_line(folder: Path, number: int, wanted: Changes) -> None:
    source = GRIDS[number % len(GRIDS)]
    tree = read_mapping(source)
    for system in tree["systems"].values():
        system["config"] = str(source.parent / system["config"])
    try:
        grid = read_grid(written(folder, changed(tree, wanted)))
    except UserError as error:
        assert "\n" not in str(error)
        return
    for cell in grid.cells(["voice-a"]):
        assert ".." not in Path(cell.tag).parts and not cell.tag.startswith("/")
        cell.config_text(folder)


def config_is_one_line(folder: Path, number: int, wanted: Changes) -> None:
    tree = resolve_includes(CONFIGS[number % len(CONFIGS)])
    try:
        config, found = read_config(written(folder, changed(tree, wanted)))
    except UserError as error:
        found = [str(error)]
    else:
        found += recipe_problems(config)
    assert not [line for line in found if "\n" in line]


def model_is_one_line(folder: Path, wanted: Changes) -> None:
    """Of a small model: it builds, or says in one line why not."""
    source = ROOT / "egs/fotaq/asr1/conf/train_hrf_conformer_xs.yaml"
    whole = resolve_includes(source)
    tree = {key: value for key, value in whole.items() if key.endswith("_conf")}
    with warnings.catch_warnings(action="ignore"):
        found = examine_file(written(folder, whole | changed(tree, wanted)))
    assert not [line for line in (*found.problems, *found.warnings) if "\n" in line]


quick = settings(max_examples=40, deadline=None, derandomize=True)
long = settings(max_examples=1500, deadline=None, derandomize=True)
numbers = st.integers(0, 10**6)


@quick
@given(number=numbers, wanted=changes)
def test_absurd_values(tmp_path_factory, number, wanted):
    grid_is_one_line(tmp_path_factory.mktemp("grid"), number, wanted)
    config_is_one_line(tmp_path_factory.mktemp("config"), number, wanted)


@pytest.mark.slow
@long
@given(number=numbers, wanted=changes)
def test_many_absurd_values(tmp_path_factory, number, wanted):
    grid_is_one_line(tmp_path_factory.mktemp("grid"), number, wanted)
    config_is_one_line(tmp_path_factory.mktemp("config"), number, wanted)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(wanted=changes)
def test_absurd_models(tmp_path_factory, wanted):
    model_is_one_line(tmp_path_factory.mktemp("model"), wanted)
