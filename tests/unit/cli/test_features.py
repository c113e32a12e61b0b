"""What other audio under the same names makes stale: arks, trainings, hypotheses."""

import argparse

import numpy as np
import pytest
import soundfile

import espnet_ext.bridge.decoding.loading  # noqa: F401  before a test replaces Decoder
from espnet_ext.bridge.decoding import decoder, inference
from espnet_ext.cli import decode, features
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.experiment import Experiment
from espnet_ext.files import content_key


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's folder after stage 1; call it with the amplitude of its audio."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_x.yaml").write_text("frontend: kaldi_fbank\nrecipe: {features: ark}\n")

    def prepare(amplitude: float):
        sets = {}
        for name in ("train", "dev", "test"):
            samples = amplitude * np.sin(np.arange(8000) / 9)
            soundfile.write(f"{name}.flac", samples, 16000)
            sets[name] = [Utterance(f"a-{name}", "a", f"text of {name}", f"{name}.flac", 0.5)]
        write_sets("data", sets)

    return prepare


def stage(sets: str | None = None) -> None:
    named = None if sets is None else [sets]
    features.run(argparse.Namespace(config="train_x.yaml", sets=named, nj=1, part=None))


def test_only_the_sets_that_are_named(recipe, tmp_path, capsys):
    recipe(0.5)
    folder = tmp_path / "dump/fbank80"
    stage("eval")
    assert "no data/eval/wav.scp: left out" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["dev", "train"]
    stage("test")
    assert sorted(path.name for path in folder.iterdir()) == ["dev", "test", "train"]


def test_other_audio_under_the_same_names_gives_other_arks(recipe, tmp_path, capsys):
    ark = tmp_path / "dump/fbank80/train/feats.0.ark"
    recipe(0.5)
    stage()
    first = ark.read_bytes()
    capsys.readouterr()
    recipe(0.5)
    stage()
    assert capsys.readouterr().out.count("is up to date") == 3
    recipe(0.1)
    stage()
    assert "up to date" not in capsys.readouterr().out
    assert len(ark.read_bytes()) == len(first)
    assert ark.read_bytes() != first


def test_other_audio_under_the_same_names_is_another_training(recipe):
    def decides():
        files = Experiment.load("train_x.yaml").training_files()
        return {file: content_key(file) for file in files}

    recipe(0.5)
    stage()
    before = decides()
    recipe(0.1)
    stage()
    changed = [str(file) for file, key in decides().items() if before[file] != key]
    assert changed == ["data/train/audio.sha256", "data/dev/audio.sha256"]


def test_other_audio_under_the_same_names_is_decoded_again(recipe, tmp_path, monkeypatch, capsys):
    def nothing(*_args, **_options):
        return []

    monkeypatch.setattr(
        decoder, "Decoder", lambda *_args: argparse.Namespace(method=None, device="cpu")
    )
    monkeypatch.setattr(inference, "decode_set", nothing)
    monkeypatch.setattr(inference, "summary", lambda *_: {"too_short": 0})
    monkeypatch.setattr(inference, "time_set", lambda *_: {"rtf": 0.0})
    deployed = tmp_path / "exp/x/deploy/merged"
    deployed.mkdir(parents=True)
    for name in ("model.pth", "config.yaml"):
        (deployed / name).write_text("")
    said = []
    for amplitude in (0.5, 0.5, 0.1):
        recipe(amplitude)
        stage()
        capsys.readouterr()
        words = {"config": "train_x.yaml", "tag": None, "variant": None, "sets": ["test"], "nj": 1}
        decode.run(argparse.Namespace(part=None, device="cpu", **words))
        said.append("up to date" in capsys.readouterr().out)
    assert said == [False, True, False]
