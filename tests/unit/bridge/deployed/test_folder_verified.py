"""What differs by float32's rounding alone is deployed; what computes something else is not."""

import pytest
import torch

from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.methods import shared_linear
from tests.fixtures import streams

LIMIT = 1e-8  # finer than float32 computes these small models


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """Deploys layers as a base and a residual, where training multiplies by their sum."""
    monkeypatch.chdir(tmp_path)
    for module in ("bridge.deployed.folder", "methods.verify"):
        monkeypatch.setattr(f"espnet_ext.{module}.TOLERANCE", LIMIT)
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
