"""Kaldi directories with segments: cut once, then read like any other."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.cli import features
from espnet_ext.data.inputs import check_inputs
from espnet_ext.data.kaldi_dir import read_data_dir, read_table, validate_data_dir
from espnet_ext.data.segments import set_folder
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

SAMPLES = (0.1 * np.random.default_rng(0).normal(size=32000)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe's folder with a set of two recordings and three segments."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        soundfile.write(f"{name}.wav", SAMPLES, 16000, subtype="PCM_16")
    tables = {
        "wav.scp": "rec1 one.wav\nrec2 two.wav\n",
        "segments": "a-1 rec1 0.25 0.75\na-2 rec1 1.0 2.3\nb-1 rec2 0.5 -1\n",
        "text": "a-1 one\na-2 two\nb-1 three\n",
        "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
        "spk2utt": "a a-1 a-2\nb b-1\n",
    }
    for part in ("train", "dev", "test"):
        Path("data", part).mkdir(parents=True)
        for name, text in tables.items():
            Path("data", part, name).write_text(text)
    return tmp_path


def stage(kind="default", **recipe):
    extra = "recipe: {features: ark}\n" if kind == "kaldi_fbank" else ""
    Path("train_x.yaml").write_text(f"frontend: {kind}\n{extra}")
    features.run(argparse.Namespace(config="train_x.yaml", sets=None, nj=1, part=None))


def test_segments_are_cut_at_their_samples_and_once(folder, capsys):
    stage()
    assert "3 segments cut from 2 recordings" in capsys.readouterr().out
    cut = set_folder(Path("data"), "test")
    assert cut == Path("dump/cut/test")
    found = {u.id: u for u in validate_data_dir(cut)}
    assert {u.id: (u.speaker, u.text) for u in found.values()} == {
        "a-1": ("a", "one"),
        "a-2": ("a", "two"),
        "b-1": ("b", "three"),
    }
    places = {"a-1": (4000, 12000), "a-2": (16000, 32000), "b-1": (8000, 32000)}
    for name, (start, end) in places.items():
        np.testing.assert_allclose(
            soundfile.read(found[name].audio)[0], SAMPLES[start:end], atol=1e-4
        )
    stage()
    assert "cut from" not in capsys.readouterr().out


def test_all_stages_read_the_cut_directory(folder):
    stage()
    experiment = Experiment.load("train_x.yaml")
    assert experiment.require_audio_list("test") == Path("dump/cut/test/wav.scp")
    check_inputs(set_folder(experiment.data, "dev"), experiment.audio_list("dev"), 16000)


def test_features_of_segments(folder):
    stage("kaldi_fbank")
    frames = read_table("dump/fbank80/test/utt2num_frames")
    assert list(frames) == ["a-1", "a-2", "b-1"]
    assert int(frames["a-1"]) == pytest.approx(50, abs=3)


def test_before_stage_two_a_directory_with_segments_is_refused(folder):
    with pytest.raises(UserError, match="stage 2 cuts them"):
        read_data_dir("data/test")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a-1 rec9 0.25 0.75", "no rec9 in wav.scp"),
        ("a-1 rec1 0.25", "expected 'utterance recording start end'"),
        ("a-1 rec1 x 0.75", "expected 'utterance recording start end'"),
        ("a-1 rec1 0.75 0.25", "no time from 0.75 s to 0.25 s"),
        ("a-1 rec1 nan 0.25", "no time from nan s"),
        ("a-1 rec1 -2 0.25", "no time from -2 s"),
        ("a-1 rec1 1.0 9.0", "the utterance ends at 9.0 s, the audio at 2.00 s"),
    ],
)
def test_wrong_segments_are_refused(folder, line, reason):
    Path("data/test/segments").write_text(f"{line}\na-2 rec1 1.0 1.5\nb-1 rec2 0.5 1\n")
    with pytest.raises(UserError, match=f"a-1: .*{reason}"):
        stage()
    assert not Path("dump/cut/test").exists()
