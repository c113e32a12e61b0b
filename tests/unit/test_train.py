"""Which changes of a config go with a training that is there, and which are refused."""

import dataclasses

import pytest

from espnet_ext.bin.train import decisive, refuse_other_run
from espnet_ext.config import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.files import read_json

DATA = {"data/train/text": "1", "data/token_list/char/tokens.txt": "2"}


def settings(config: Config, *options: str) -> dict:
    return {"config": decisive(config.as_dict()), "espnet": list(options), "data": DATA}


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    """A config whose training was started with ``--max_epoch 3``."""
    monkeypatch.chdir(tmp_path)
    made = Config(tmp_path / "train_tiny.yaml", "tiny", Recipe(), {"encoder": "conformer"})
    refuse_other_run(made, settings(made, "--max_epoch", "3"))
    (made.exp / "checkpoint.pth").touch()
    return made


def with_recipe(config: Config, **changes) -> Config:
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, **changes))


def test_what_later_stages_read_may_change(config):
    changed = with_recipe(
        config, decode={"ctc_att_beam": {"beam_size": 3}}, baseline="other", variant="plain"
    )
    refuse_other_run(changed, settings(changed, "--max_epoch", "3"))


def test_what_training_reads_may_not(config):
    before = read_json(config.exp / "resolved.json")
    other = dataclasses.replace(config, espnet={"encoder": "transformer"})
    for changed in (other, with_recipe(config, average=1), with_recipe(config, features="ark")):
        with pytest.raises(UserError, match="other settings"):
            refuse_other_run(changed, settings(changed, "--max_epoch", "3"))
    with pytest.raises(UserError, match="other settings"):
        refuse_other_run(config, settings(config))
    assert read_json(config.exp / "resolved.json") == before


def test_other_data_are_refused_and_named(config):
    changed = settings(config, "--max_epoch", "3") | {"data": {**DATA, "data/train/text": "3"}}
    with pytest.raises(UserError, match="before data/train/text changed"):
        refuse_other_run(config, changed)


def test_without_a_checkpoint_all_may_change(config):
    (config.exp / "checkpoint.pth").unlink()
    refuse_other_run(config, settings(config, "--max_epoch", "9"))
    assert read_json(config.exp / "resolved.json")["espnet"] == ["--max_epoch", "9"]
