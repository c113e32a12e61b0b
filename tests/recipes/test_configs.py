"""Every training config of every recipe passes ``check``."""

from pathlib import Path

import pytest

EGS = Path(__file__).resolve().parents[2] / "egs"
CONFIGS = sorted(
    path.relative_to(EGS)
    for path in EGS.rglob("train_*.yaml")
    if not {"exp", "dump", "data", "downloads"} & set(path.relative_to(EGS).parts)
)


def test_there_are_configs_and_every_recipe_has_one():
    recipes = {run.parent.relative_to(EGS) for run in EGS.rglob("run.sh")}
    assert len(CONFIGS) >= 2
    assert {config.parents[1] for config in CONFIGS} == recipes


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_passes_check(config):
    from espnet_ext.tasks.checking import examine_file

    found = examine_file(EGS / config)
    assert found.problems == []
    assert found.parameters > 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_has_at_most_25_lines_of_its_own(config):
    assert len((EGS / config).read_text(encoding="utf-8").splitlines()) <= 25
