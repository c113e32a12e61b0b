"""Features from a layer of a self-supervised model, against the whole model; each fault named."""

import argparse
import json
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_ext.cli import features
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.data.ssl_model import FAMILIES, read_ssl
from espnet_ext.encoders.pretrained.features import layer_extractor
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from tests.fixtures import speech_models
from tests.fixtures.ssl_models import LAYERS, WIDTH, make_ssl

WAVE = np.random.default_rng(0).normal(0.05, 0.1, 16000).astype(np.float32)
CONFIG = "frontend: ssl\nfrontend_conf: {folder: small, layer: 2}\nrecipe: {features: ark}\n"


def states(model, wave):
    """Outputs of every layer of the whole model."""
    with torch.no_grad():
        found = model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in found]


@pytest.mark.parametrize("stable", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if "whisper" not in name])
def test_a_layer_is_that_of_the_whole_model(tmp_path, family, stable):
    whole = make_ssl(tmp_path / "small", family, stable)
    expected = states(whole, (WAVE - WAVE.mean()) / WAVE.std())
    for layer in range(LAYERS + 1):
        described = read_ssl(tmp_path / "small", [layer])
        assert (described.width, described.frames_per_second, described.rate) == (WIDTH, 50, 16000)
        found = layer_extractor(described)(WAVE)
        assert found.dtype == np.float32 and found.shape == (49, WIDTH)
        np.testing.assert_allclose(found, expected[layer], atol=1e-5)
        others = [state for k, state in enumerate(expected) if k != layer]
        assert min(np.abs(found - other).max() for other in others) > 1e-2


def test_whispers_layers_are_those_of_its_stack(tmp_path):
    speech_models.make(tmp_path / "small", "whisper")
    stack = load_stack(tmp_path / "small")
    with torch.no_grad():
        x, lengths = stack.front(torch.from_numpy(WAVE)[None], torch.tensor([len(WAVE)]))
        h = stack.enter(x, lengths)
        for layer in range(stack.num_layers + 1):
            described = read_ssl(tmp_path / "small", [layer])
            assert described.width == stack.width and described.frames_per_second == 50
            found = layer_extractor(described)(WAVE)
            assert found.shape == (50, stack.width)
            np.testing.assert_allclose(found, h[0].numpy(), atol=1e-5)
            if layer < stack.num_layers:
                h = stack.run(h, lengths, layer, layer + 1, finished=False)[-1]


def test_layers_are_joined_along_the_features(tmp_path):
    whole = make_ssl(tmp_path / "small")
    expected = states(whole, (WAVE - WAVE.mean()) / WAVE.std())
    described = read_ssl(tmp_path / "small", [2, 0])
    assert (described.width, described.name) == (2 * WIDTH, "ssl_small_l2_0")
    joined = np.concatenate([expected[2], expected[0]], axis=1)
    np.testing.assert_allclose(layer_extractor(described)(WAVE), joined, atol=1e-5)


def test_a_model_that_is_not_there_yet_is_described_by_its_architecture(tmp_path):
    sizes = {"model_type": "whisper", "encoder_layers": 4, "d_model": 384}
    described = read_ssl(tmp_path / "away", [4], sizes)
    assert (described.width, described.files) == (384, [])
    with pytest.raises(UserError, match="layer must be from 0 to 4"):
        read_ssl(tmp_path / "away", [5], sizes)
    with pytest.raises(UserError, match=r"no folder .*away"):
        read_ssl(tmp_path / "away", [4])
    speech_models.make(tmp_path / "small", "whisper")
    with pytest.raises(UserError, match=r"d_model .* architecture says 384|encoder_layers"):
        read_ssl(tmp_path / "small", [1], sizes | {"encoder_layers": 4})


def test_waves_are_prepared_as_the_model_says(tmp_path):
    whole = make_ssl(tmp_path / "small", stable=True)
    (tmp_path / "small/preprocessor_config.json").write_text('{"do_normalize": false}')
    found = layer_extractor(read_ssl(tmp_path / "small", [1]))(WAVE)
    np.testing.assert_allclose(found, states(whole, WAVE)[1], atol=1e-5)
    assert np.abs(found - states(whole, (WAVE - WAVE.mean()) / WAVE.std())[1]).max() > 1e-2


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's folder after stage 1, with a model in it."""
    monkeypatch.chdir(tmp_path)
    make_ssl(tmp_path / "small")
    (tmp_path / "train_x.yaml").write_text(CONFIG)
    sets = {}
    for number, name in enumerate(("train", "dev")):
        soundfile.write(f"{name}.flac", 0.5 * np.sin(np.arange(8000) / (9 + number)), 16000)
        sets[name] = [Utterance(f"a-{name}", "a", f"text of {name}", f"{name}.flac", 0.5)]
    write_sets("data", sets)
    return tmp_path


def stage() -> None:
    features.run(argparse.Namespace(config="train_x.yaml", sets=None, nj=1, part=None))


def test_the_verb_writes_arks_and_another_model_makes_them_stale(recipe, capsys):
    stage()
    assert sorted(p.name for p in Path("dump").iterdir()) == ["ssl_small_l2"]
    matrix = kaldiio.load_scp("dump/ssl_small_l2/dev/feats.scp")["a-dev"]
    wave, _ = soundfile.read("dev.flac", dtype="float32")
    expected = layer_extractor(read_ssl(Path("small"), [2]))(wave)
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    assert matrix.shape == (len(wave) // 320 - 1, WIDTH)
    frames = Path("dump/ssl_small_l2/dev/utt2num_frames").read_text()
    assert frames == f"a-dev {len(matrix)}\n"
    capsys.readouterr()
    stage()
    assert capsys.readouterr().out.count("is up to date") == 2
    weights = Path("small/model.safetensors")
    experiment = Experiment.load("train_x.yaml")
    assert weights in experiment.training_files()
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    stage()
    assert "up to date" not in capsys.readouterr().out
    assert (experiment.feature_width, experiment.frames_per_second) == (WIDTH, 50)


def edit(path, **over):
    path.write_text(json.dumps(json.loads(path.read_text()) | over))


FAULTS = {
    "no folder": (lambda f: f.rename("gone"), "no folder small"),
    "no model": (lambda f: (f / "config.json").unlink(), "small is no model: it has no config"),
    "json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "expected keys and values"),
    "family": (
        lambda f: edit(f / "config.json", model_type="bert"),
        "small is a model of family 'bert', not one of wav2vec2, hubert, wavlm",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "no small/model.safetensors; weights in pickles are not opened",
    ),
    "layer": (
        lambda f: edit(f / "config.json", num_hidden_layers=1),
        "from 0 to 1 in small, not 2",
    ),
    "half a config": (lambda f: edit(f / "config.json", hidden_size=None), "no whole model"),
    "cut": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:99]
        ),
        "small: damaged model.safetensors",
    ),
    "weights": (
        lambda f: edit(f / "config.json", num_hidden_layers=LAYERS + 1),
        "small: its weights are of another model: they lack",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_model_is_one_line(recipe, fault):
    prepare, words = FAULTS[fault]
    prepare(recipe.joinpath("small").relative_to(recipe))
    with pytest.raises(UserError) as caught:
        stage()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(recipe.glob("dump/**/feats.scp"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONFIG.replace("folder: small, ", ""), "frontend_conf: folder must be that of"),
        (
            CONFIG.replace("layer: 2", "layer: last"),
            "layer must be a whole number or a list of some, not 'last'",
        ),
        (CONFIG.replace("layer: 2", "layer: []"), "a whole number or a list of some, not []"),
        (CONFIG.replace("layer: 2", "layer: [1, 1]"), "layer names one twice: [1, 1]"),
        (CONFIG.replace("layer: 2", "layer: [1, 9]"), "layer must be from 0 to"),
        (CONFIG.replace("ark", "raw"), "frontend: ssl needs recipe: features: ark"),
        (CONFIG.replace(": ssl", ": fbank"), "needs frontend: kaldi_fbank or ssl"),
    ],
)
def test_each_fault_of_a_config_is_one_line(recipe, text, words):
    (recipe / "train_x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"train_x\.yaml: ") as caught:
        stage()
    assert words in str(caught.value)
