"""Folders of pretrained models that cannot be loaded, or not so: one line."""

import json
import shutil
import sys

import pytest
import torch

from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from tests.fixtures import speech_models


@pytest.fixture
def model(tmp_path):
    speech_models.make(tmp_path / "model", "wavlm")
    return tmp_path / "model"


def complains(folder):
    with pytest.raises(UserError) as error:
        load_stack(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def test_the_first_layer_of_wavlm_is_protected(model):
    stack = load_stack(model)
    with pytest.raises(UserError, match="layer 0 must stay: WavLM's first layer makes the pos"):
        stack.remove([0, 1])
    with pytest.raises(UserError, match="no layer 1 in this wavlm stack; its layers are 0, 2, 3"):
        stack.remove([1]).remove([1])


def test_weights_of_another_shape(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    assert "cannot load it" in complains(model)


def test_weights_that_lack_a_layer(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert "they lack encoder.layers.4." in complains(model)


@pytest.mark.parametrize("left", [0, 4, 5000])
def test_weights_cut_short(model, left):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert str(model) in complains(model)


def test_no_weights_but_a_pickle(model):
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    assert str(model) in complains(model)


def test_a_config_that_is_no_json(model):
    (model / "config.json").write_text("{")
    assert "not valid JSON" in complains(model)
    (model / "config.json").write_text("[]")
    assert "unknown model family 'None'" in complains(model)


def test_code_in_a_folder_is_not_run(model):
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text("import sys\nsys.modules['was_run'] = sys\n")
    assert load_stack(model).num_layers == 4
    assert "was_run" not in sys.modules


def test_utterances_of_a_length_that_cannot_be(tmp_path, model):
    stack = load_stack(model)
    with pytest.raises(UserError, match="an utterance of 9 samples is too short for wavlm"):
        stack.front(*speech_models.speech(1600, 9))
    speech_models.make(tmp_path / "whisper", "whisper")
    whisper = load_stack(tmp_path / "whisper")
    with pytest.raises(UserError, match=r"31\.0 s is longer than the 30 s that Whisper"):
        whisper.front(*speech_models.speech(31 * 16000))
    with pytest.raises(UserError, match="100 samples is too short for whisper"):
        whisper.front(*speech_models.speech(1600, 100))


def test_an_experiment_with_several_models_and_none_merged(tmp_path, model):
    exp = tmp_path / "exp/x"
    for variant in ("2L-48-32b", "4L-48-32b"):
        shutil.copytree(model, exp / "deploy" / variant / "stack")
    line = complains(exp)
    assert f"{exp} has several models; give one: {exp}/deploy/2L-48-32b, {exp}/dep" in line
    config = exp / "deploy/4L-48-32b/stack/config.json"
    shutil.rmtree(exp / "deploy/2L-48-32b")
    assert load_stack(exp).num_layers == 4
    shutil.copytree(model, exp / "deploy/merged/stack")
    config.unlink()  # merged is read, whatever else is there
    assert load_stack(exp).num_layers == 4
