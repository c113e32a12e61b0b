"""Copies of training sets at other speeds: their audio, their lists, and the arks of stage 2."""

import argparse
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_ext.cli import features
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.kaldi_dir import Utterance, read_data_dir
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

CONFIG = """
frontend: kaldi_fbank
recipe: {features: ark, speeds: [0.8, 1.25], train_set: fold-1/train, task: cls, classes: 2,
  decode: {classify: {}}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's folder after stage 1, with folds: tones of 400 Hz, 1 s."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_x.yaml").write_text(CONFIG)
    (tmp_path / "train_plain.yaml").write_text(CONFIG.replace("speeds: [0.8, 1.25], ", ""))

    def prepare(amplitude=0.5):
        rows = []
        for speaker in "abcd":
            wave = amplitude * np.sin(2 * np.pi * 400 * np.arange(16000) / 16000)
            soundfile.write(f"{speaker}.flac", wave, 16000)
            label = "xy"[len(rows) % 2]
            rows.append(Utterance(f"{speaker}-1", speaker, "", f"{speaker}.flac", 1.0, label))
        folds = {"fold-1/train": rows[:2], "fold-1/dev": rows[2:], "fold-2/train": rows[2:]}
        write_sets("data", {"all": rows, **folds})

    prepare()
    return prepare


def stage(config="train_x.yaml"):
    features.run(argparse.Namespace(config=config, sets=None, nj=1, part=None))


def test_copies_last_as_long_and_sound_as_high_as_their_speed_says(recipe):
    stage()
    found = {item.id: item for item in read_data_dir("data/fold-1/train_sp")}
    assert sorted(found) == ["a-1", "b-1", "sp0.8-a-1", "sp0.8-b-1", "sp1.25-a-1", "sp1.25-b-1"]
    for speed in (0.8, 1.25):
        copy = found[f"sp{speed:g}-b-1"]
        assert (copy.speaker, copy.label) == (f"sp{speed:g}-b", found["b-1"].label)
        wave, rate = soundfile.read(copy.audio)
        assert rate == 16000 and len(wave) == round(16000 / speed)
        loudest = np.abs(np.fft.rfft(wave)).argmax() / len(wave) * rate
        assert loudest == pytest.approx(400 * speed, abs=2)
        assert np.abs(wave[4000:8000]).max() == pytest.approx(0.5, abs=0.02)


def test_the_training_reads_them_and_nothing_else_does(recipe):
    stage()
    assert Experiment.load("train_x.yaml").sets == ("fold-1/train_sp", "dev")
    assert Experiment.load("train_plain.yaml").sets == ("fold-1/train", "dev")
    sets = {p.parent.relative_to("data").as_posix() for p in Path("data").rglob("wav.scp")}
    plain = {"all", "fold-1/train", "fold-1/dev", "fold-2/train"}
    assert sets - plain == {"all_sp", "fold-1/train_sp", "fold-2/train_sp"}


def test_arks_of_copies_are_written_once_for_all_folds(recipe, capsys):
    stage()
    assert sorted(map(str, Path("dump").rglob("*.ark"))) == [
        "dump/fbank80/all/feats.0.ark",
        "dump/fbank80/all_sp/feats.0.ark",
    ]
    rows = kaldiio.load_scp("dump/fbank80/fold-2/train_sp/feats.scp")
    assert len(rows) == 6
    assert len(rows["sp1.25-c-1"]) < len(rows["c-1"]) < len(rows["sp0.8-c-1"])
    capsys.readouterr()
    stage()
    assert "copies" not in capsys.readouterr().out
    recipe(amplitude=0.25)
    stage()
    assert "8 copies at other speeds for 3 sets, in data/speeds" in capsys.readouterr().out
    wave, _ = soundfile.read("data/speeds/sp0.8-a-1.flac")
    assert np.abs(wave[4000:8000]).max() == pytest.approx(0.25, abs=0.02)


def test_a_config_without_speeds_has_no_features_of_copies(recipe):
    stage()
    Path("train_plain.yaml").write_text(
        Path("train_plain.yaml").read_text() + "frontend_conf: {n_mels: 40}\n"
    )
    stage("train_plain.yaml")
    assert not list(Path("dump/fbank40").rglob("*_sp"))


@pytest.mark.parametrize("speeds", ["[0.1]", "[fast]", "1.1"])
def test_speeds_that_are_none_are_refused(recipe, speeds):
    Path("train_x.yaml").write_text(CONFIG.replace("[0.8, 1.25]", speeds))
    with pytest.raises(UserError, match=r"recipe: speeds.* must be a (list of )?speed"):
        stage()
