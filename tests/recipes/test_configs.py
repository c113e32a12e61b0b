"""Every training config of every recipe passes ``check``."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from espnet_ext.config.training import load_config
from tests.fixtures.examined import examine_file

EGS = Path(__file__).resolve().parents[2] / "egs"
CONFIGS = sorted(
    path.relative_to(EGS)
    for path in EGS.rglob("train_*.yaml")
    if not {"exp", "dump", "data", "downloads"} & set(path.relative_to(EGS).parts)
)


def test_there_are_configs_and_every_recipe_has_one():
    recipes = {run.parent.relative_to(EGS) for run in EGS.rglob("run.sh")}
    assert len(CONFIGS) >= 2
    assert {Path(*config.parts[:2]) for config in CONFIGS} == recipes


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_passes_check(config):
    found = examine_file(EGS / config)
    assert found.problems == []
    assert found.parameters > 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_has_at_most_25_lines_of_its_own(config):
    assert len((EGS / config).read_text(encoding="utf-8").splitlines()) <= 25


FILLETS = EGS / "fillets/st1"


def into(target, config):
    """The config into English, with every name of its family that of another target."""
    found = config.as_dict() | {"recipe": config.as_dict()["recipe"] | {"target": target}}
    if found["recipe"]["baseline"]:
        found["recipe"]["baseline"] += f"_{target}"
    if "init_param" in found:
        found["init_param"] = [
            re.sub(r"^exp/(\w+)/", rf"exp/\1_{target}/", path) for path in found["init_param"]
        ]
    return found


def assert_family(conf, target):
    """Assert that configs of a target are English ones but for it, and start from one another."""
    tags = {path.stem.removeprefix("train_") for path in conf.glob(f"train_*_{target}.yaml")}
    assert {tag.partition("_")[0] for tag in tags} == {"start", "stream", "share", "residual"}
    for tag in tags:
        config = load_config(conf / f"train_{tag}.yaml")
        english = load_config(conf / f"train_{tag.removesuffix(f'_{target}')}.yaml")
        assert config.as_dict() == into(target, english)
        starts = {Path(path).parent.name for path in config.espnet.get("init_param", [])}
        assert starts | {config.recipe.baseline or tag} <= tags


def test_fillets_into_german():
    assert_family(FILLETS / "conf", "de")


def test_fillets_into_another_language_as_its_readme_says(tmp_path):
    shutil.copytree(EGS / "conf", tmp_path / "egs/conf")
    shutil.copytree(FILLETS / "conf", tmp_path / "egs/fillets/st1/conf")
    (command,) = re.findall(
        r"^```bash\n(for file.*?)^```", (FILLETS / "README.md").read_text(), re.M | re.S
    )
    recipe = tmp_path / "egs/fillets/st1"
    subprocess.run(["bash", "-euc", command], cwd=recipe, check=True, timeout=60)
    assert_family(recipe / "conf", "sv")
    assert not [path for path in recipe.glob("conf/*_sv.yaml") if "German" in path.read_text()]
