"""The rounding of float32 is accepted; a fault of the same size is refused."""

import json

import pytest
import torch
import yaml

from espnet_ext.bridge import build
from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.methods import shared_linear
from tests.fixtures import streams
from tests.fixtures.speech_models import TINY

LIMIT = 1e-8  # finer than float32 computes these small models


def stack(root, family):
    """Make a config, and a checkpoint, of a tiny pretrained encoder whose layers share a base."""
    tokens = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
    shared = {"share": 2, "rank": 2}
    espnet = {
        "frontend": "raw",
        "normalize": None,
        "encoder": "stack",
        "encoder_conf": {"architecture": TINY[family], "frozen": False, "residual": shared},
        "decoder": None,
        "model_conf": {"ctc_weight": 1.0},
        "token_type": "char",
    }
    (root / "train_stack.yaml").write_text(yaml.safe_dump(espnet))
    made = Experiment.of(load_config(root / "train_stack.yaml"), "shared", root)
    model = build.build_model(made, len(tokens))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.folder.mkdir(parents=True)
    torch.save(model.state_dict(), made.folder / "1epoch.pth")
    arguments = vars(build.arguments_of(made)) | {"token_list": tokens}
    made.espnet_config.write_text(yaml.safe_dump(json.loads(json.dumps(arguments))))
    return made


@pytest.mark.parametrize("family", ["whisper", "wav2vec2", "wavlm"])
def test_rounding_of_a_pretrained_encoder_is_no_difference(tmp_path, monkeypatch, limit, family):
    made = stack(tmp_path, family)
    monkeypatch.chdir(tmp_path)
    speech = Speech([torch.from_numpy(streams.wave(1.0))], SpeechInput.of(made))
    found = deploy_experiment(made, made.folder / "1epoch.pth", speech)["verified"]
    assert found["computed_in"] == "float64" and found["max_difference"] <= LIMIT


@pytest.fixture
def limit(monkeypatch):
    for module in ("bridge.deployed.folder", "methods.verify"):
        monkeypatch.setattr(f"espnet_ext.{module}.TOLERANCE", LIMIT)


@pytest.fixture
def shared(tmp_path, monkeypatch, limit):
    """Deploys layers as a base and a residual, where training multiplies by their sum."""
    monkeypatch.chdir(tmp_path)
    streams.make(tmp_path, variants=())
    made = Experiment.of(load_config(tmp_path / "train_tiny.yaml"), "shared", tmp_path)
    speech = Speech([torch.from_numpy(streams.wave(2.0))], SpeechInput.of(made))
    return made, lambda: deploy_experiment(made, tmp_path / "exp/tiny/1epoch.pth", speech)


def test_rounding_is_no_difference(shared):
    _, deploy = shared
    found = deploy()["verified"]
    assert (
        found["computed_in"] == "float64" and found["max_difference"] <= found["tolerance"] == LIMIT
    )


def test_a_fault_as_small_as_rounding_is_refused(shared, monkeypatch):
    made, deploy = shared
    right = shared_linear.with_residual

    def wrong(y, x, down, up, diagonal):
        return right(y, x, down, up, None if diagonal is None else diagonal * (1 + 1e-6))

    monkeypatch.setattr(shared_linear, "with_residual", wrong)
    with pytest.raises(UserError, match="the deployed model differs from the training model by"):
        deploy()
    assert not made.deployed.exists()
