"""The file of a model that shares weights: as large as its parameters, and what was deployed."""

from pathlib import Path

import pytest
import torch

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.checkpoint import deployed_bytes, expand_state, load_weights, write
from espnet_ext.config.training import load_config
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import deploy, parameter_count
from tests.fixtures.speech_models import randomise

CONFIGS = Path(__file__).resolve().parents[3] / "egs/fotaq/asr1/conf/residual"


@pytest.mark.parametrize("name", ["residual_stream_xs_k3", "residual_stream_xs_k18"])
def test_the_file_is_within_2_percent_of_its_parameters(tmp_path, name):
    trained = randomise(build_model(Experiment.of(load_config(CONFIGS / f"train_{name}.yaml"))))
    model = deploy(trained, "shared")
    write(deployed_bytes(model, "shared"), tmp_path / "model.pth")
    wanted = 4 * parameter_count([model])
    assert wanted < (tmp_path / "model.pth").stat().st_size < 1.02 * wanted
    assert deployed_bytes(model, "shared") == (tmp_path / "model.pth").read_bytes()
    # As stock torch reads it, and as we do.
    read = torch.load(tmp_path / "model.pth", weights_only=True)
    expected = model.state_dict()
    assert set(expand_state(model, read)) == set(expected)
    assert all(torch.equal(read[key], expected[key]) for key in read)
    again = randomise(deploy(trained, "shared"))
    load_weights(again, tmp_path / "model.pth")
    assert all(torch.equal(v, expected[k]) for k, v in again.state_dict().items())
