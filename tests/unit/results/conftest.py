"""A recipe folder with one run, and its collected result."""

import json

import pytest

from espnet_ext.experiment import Experiment
from espnet_ext.results.run import collect
from espnet_ext.results.schema import as_json
from tests.fixtures.a_run import enter_run


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return enter_run(tmp_path, monkeypatch)


@pytest.fixture
def result(recipe):
    """The result as JSON holds it."""
    found = collect(Experiment.load("conf/train_hrf_xs.yaml"), recipe)
    return json.loads(json.dumps(as_json(found)))
