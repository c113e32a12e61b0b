"""Options and changes of a config: which go with a training, and which are refused."""

import argparse
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from espnet2.train.trainer import Trainer as ESPnetTrainer

from espnet_ext.bridge.training import trainer
from espnet_ext.cli.train import add_arguments
from espnet_ext.config.no_effect import no_effect_warnings
from espnet_ext.config.processes import Processes
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import read_json
from espnet_ext.stages.one_run import refuse_other_run
from espnet_ext.stages.train import TrainOptions

DATA = {"data/train/text": "1", "data/token_list/char/tokens.txt": "2"}


def start(config: Config, data: dict[str, str] = DATA, **over) -> None:
    """Start a training with ESPnet's options ``over``, or continue the one that is there."""
    with_options = dataclasses.replace(config, espnet={**config.espnet, **over})
    refuse_other_run(Experiment.of(with_options), data)


def recorded(config: Config) -> dict:
    return read_json(Experiment.of(config).folder / "resolved.json")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    """A config whose training was started with ``--max_epoch 3``."""
    monkeypatch.chdir(tmp_path)
    made = Config(tmp_path / "train_tiny.yaml", "tiny", Recipe(), {"encoder": "conformer"})
    start(made, max_epoch=3)
    (Experiment.of(made).folder / "checkpoint.pth").touch()
    return made


def with_recipe(config: Config, **changes) -> Config:
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, **changes))


def test_what_later_stages_read_may_change(config):
    changed = with_recipe(
        config, decode={"ctc_att_beam": {"beam_size": 3}}, baseline="other", variant="plain"
    )
    start(changed, max_epoch=3)


def test_what_training_reads_may_not(config):
    before = recorded(config)
    other = dataclasses.replace(config, espnet={"encoder": "transformer"})
    for changed in (other, with_recipe(config, average=1), with_recipe(config, features="ark")):
        with pytest.raises(UserError, match="other settings"):
            start(changed, max_epoch=3)
    with pytest.raises(UserError, match="other settings"):
        start(config, max_epoch=3, seed=2)
    assert recorded(config) == before


def test_other_data_are_refused_and_named(config):
    with pytest.raises(UserError, match="before data/train/text changed"):
        start(config, {**DATA, "data/train/text": "3"}, max_epoch=3)


def test_without_a_checkpoint_all_may_change(config):
    (Experiment.of(config).folder / "checkpoint.pth").unlink()
    start(config, max_epoch=9)
    assert recorded(config)["config"]["max_epoch"] == 9


def test_more_epochs_may_be_added_but_not_taken_away_and_nothing_else_with_them(config):
    start(config, max_epoch=5)
    assert recorded(config)["config"]["max_epoch"] == 5
    for over, named in (
        ({"max_epoch": 4}, "max_epoch"),
        ({"max_epoch": 9, "seed": 3}, "max_epoch, seed"),
        ({"max_epoch": 9, "encoder": "transformer"}, "encoder, max_epoch"),
    ):
        with pytest.raises(UserError, match=rf"other settings \({named}\)"):
            start(config, **over)
    assert recorded(config)["config"]["max_epoch"] == 5


def test_options_after_dashes_become_part_of_the_config():
    from espnet_ext.bridge.configs.espnet_options import with_options

    espnet = {"encoder": "conformer", "max_epoch": 14, "optim_conf": {"lr": 0.002, "eps": 1.0e-6}}
    config = Config(Path("train_tiny.yaml"), "tiny", Recipe(), espnet)
    words = ["--seed", "7", "--max_epoch=10", "--encoder", "transformer", "--patience", "none"]
    words += ["--optim_conf", "lr=0.001", "--model_conf", "{ctc_weight: 0.5}", "--batch_type=numel"]
    words += ["--best_model_criterion", "valid,acc,max"]
    assert with_options(config, words).espnet == {
        "encoder": "transformer",
        "max_epoch": 10,
        "seed": 7,
        "optim_conf": {"lr": 0.001, "eps": 1.0e-6},
        "model_conf": {"ctc_weight": 0.5},
        "batch_type": "numel",
        "best_model_criterion": [["valid", "acc", "max"]],
    }
    assert with_options(config, ["--optim_conf", "{lr: 0.1}", "--ngpu", "1"]).espnet == {
        **espnet,
        "optim_conf": {"lr": 0.1, "eps": 1.0e-6},
    }
    assert config.espnet["optim_conf"]["lr"] == 0.002
    assert with_options(config, []) is config


def test_processes_read_data_for_each_gpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert TrainOptions(ngpu=1).workers == 4
    assert TrainOptions(ngpu=2, processes=Processes(2)).workers == 3
    assert TrainOptions(ngpu=8, processes=Processes(8)).workers == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "other.yaml"], "--config is not allowed after --"),
        (["--collect_stats=true"], "--collect_stats is not allowed after --"),
        (["--collect", "false"], "--collect_stats is not allowed after --"),
        (["--dry_run", "true"], "--dry_run is not allowed after --"),
        (["--print_config"], "--print_config is not allowed after --"),
        (["--help"], "--help is not allowed after --"),
        (["--token_type", "char"], "stage 3 makes the tokens; put it into the config"),
        (["--frontend_conf", "n_mels=40"], "stage 2 makes the features; put it into the config"),
        (["--keep_nbest_models", "3"], "training gets it from recipe: average"),
    ],
)
def test_options_that_would_not_train_the_config_are_refused(words, says, tmp_path, monkeypatch):
    from espnet_ext.bridge.configs.espnet_options import refuse_reserved_options

    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("max_epoch: 3")
    with pytest.raises(UserError, match=re.escape(says)):
        refuse_reserved_options(["--seed", "3", *words], 0)
    refuse_reserved_options(["--seed", "3", "--ngpu", "0"], 0)


def test_a_setting_of_gpus_in_the_config_is_said_to_do_nothing():
    config = Config(Path("train_tiny.yaml"), "tiny", Recipe(), {"ngpu": 2})
    assert "ngpu has no effect: training gets it from the option --ngpu" in no_effect_warnings(
        config
    )


@pytest.mark.parametrize(
    "words", [["--threads", "0"], ["--threads", "x"], ["--ngpu", "-1"], ["--processes", "0"]]
)
def test_a_number_of_threads_or_gpus_that_is_none(words, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["c.yaml", *words])
    assert "needs a whole number from" in capsys.readouterr().err


def test_the_average_is_found_where_exp_is_a_link_to_another_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk/tiny").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("exp").symlink_to(tmp_path / "disk")
    config = Config(Path("train_tiny.yaml"), "tiny", Recipe(), {})
    Path("exp/tiny/valid.loss.ave_5best.pth").touch()
    Path("exp/tiny/valid.loss.ave.pth").symlink_to("valid.loss.ave_5best.pth")
    assert Experiment.of(config).averaged_model == Path("exp/tiny/valid.loss.ave_5best.pth")


@pytest.mark.parametrize(("ngpu", "wanted", "shared"), [(1, True, 1), (1, False, 0), (0, True, 0)])
def test_several_gpus_share_batch_statistics_unless_told_not_to(
    ngpu, wanted, shared, tmp_path, monkeypatch
):
    seen = []
    asked = argparse.Namespace(output_dir=str(tmp_path), ngpu=ngpu, max_epoch=1)
    several = argparse.Namespace(distributed=True, dist_rank=0)

    class Task:
        """Trains a normalisation as ESPnet's task trains a model."""

        trainer = None

        @classmethod
        def main(cls, cmd):
            model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
            cls.trainer.run(model, trainer_options=asked, distributed_option=several)

    monkeypatch.setitem(trainer.TASKS, "asr", Task)
    monkeypatch.setattr(ESPnetTrainer, "run", lambda model, **_: seen.append(model))
    settings = trainer.Settings(sync_batchnorm=wanted)
    trainer.run_task([], tmp_path / "log", "asr", settings)
    kinds = [type(module) for module in seen[0].modules()]
    assert kinds.count(torch.nn.SyncBatchNorm) == shared


def test_every_process_gets_short_and_long_utterances():
    from espnet_ext.bridge.training.trainer import in_turns

    batch = tuple(range(96, 0, -1))  # lengths, as ESPnet sorts them
    for world in (2, 3, 8):
        dealt = in_turns(batch, world)
        assert sorted(dealt) == sorted(batch)
        shares = [dealt[rank::world] for rank in range(world)]
        assert all(list(share) == sorted(share, reverse=True) for share in shares)
        assert len({sum(share) for share in shares}) == 1
    assert in_turns(batch, 1) == batch
    assert in_turns("abcde", 2) == tuple("abdce")


def test_bfloat16_needs_no_scaling_and_leaves_out_what_is_not_finite():
    import torch

    from espnet_ext.bridge.training.trainer import NoScaling

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = NoScaling()
    loss = weight.sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.5, 0.5] and scaler.get_scale() == 1.0
    weight.grad[0] = float("nan")
    scaler.step(optimizer)
    assert weight.tolist() == [0.5, 0.5]
