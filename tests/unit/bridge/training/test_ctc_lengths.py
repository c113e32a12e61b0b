"""Texts that are longer than what the encoder leaves of their audio."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.training.ctc_lengths import check_ctc_lengths, needed_frames, output_frames
from espnet_ext.data.kaldi_dir import Utterance, write_data_dir
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

CONFIG = {
    "encoder": "conformer",
    "encoder_conf": {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 1},
    "decoder": "none",
    "model_conf": {"ctc_weight": 1.0},
    "token_type": "char",
    "frontend_conf": {"fs": 16000, "n_mels": 20},
    "normalize": None,
}


def prepared(layer: str, texts: dict[str, str], **more):
    """A config, its model, and sets of audio of a second each with these texts."""
    config = {**CONFIG, **more}
    config["encoder_conf"] = {**CONFIG["encoder_conf"], "input_layer": layer}
    Path("train_x.yaml").write_text(yaml.safe_dump(config))
    soundfile.write("one.flac", 0.1 * np.sin(np.arange(16000) / 9), 16000)
    for name in ("train", "dev"):
        write_data_dir(
            Path("data", name), [Utterance(u, "s", t, "one.flac", 1.0) for u, t in texts.items()]
        )
    experiment = Experiment.load("train_x.yaml")
    return experiment, build_model(experiment, 31)


SHORT, LONG = "a cat", "a sentence of fifty letters, spoken in one second"


def test_some_texts_that_are_too_long_are_counted_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_ctc_lengths(*prepared("conv2d8", {"u1": SHORT, "u2": LONG, "u3": SHORT}))
    said = capsys.readouterr().out
    assert "CTC cannot align 1 of 3 utterances of data/train (u2: 50 tokens, 14 frames)" in said
    assert "of data/dev" in said


def test_most_texts_that_are_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment, model = prepared("conv2d8", {"u1": LONG, "u2": LONG, "u3": SHORT})
    with pytest.raises(UserError, match=r"cannot align 2 of 3 .*input_layer: conv2d"):
        check_ctc_lengths(experiment, model)
    # Attention alone has no such limit.
    model.ctc_weight = 0.0
    check_ctc_lengths(experiment, model)


@pytest.mark.parametrize("layer", ["conv2d1", "conv2d2", "conv2d", "conv2d6", "conv2d8"])
def test_frames_that_the_encoder_leaves(layer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment, model = prepared(layer, {"u1": SHORT})
    slope, offset = output_frames(experiment, model)
    for seconds in (0.5, 1.0, 3.3, 7.0):
        wave = torch.zeros(1, round(16000 * seconds))
        with torch.no_grad():
            found = int(model.encode(wave, torch.tensor([wave.shape[1]]))[1][0])
        assert abs(int(slope * seconds + offset + 1e-6) - found) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(1, 12))
def test_needed_frames_are_those_below_which_the_loss_is_infinite(tokens, frames):
    scores = torch.zeros(frames, 1, 4).log_softmax(-1)
    sizes = torch.tensor([frames]), torch.tensor([len(tokens)])
    loss = torch.nn.functional.ctc_loss(scores, torch.tensor([tokens]), *sizes)
    assert bool(torch.isinf(loss)) == (frames < needed_frames(tokens))
