"""A recipe folder with one run, and its collected result."""

import json

import pytest

from espnet_ext.config.training import load_config
from espnet_ext.results.run import collect
from tests.fixtures.a_run import make_run


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    folder = tmp_path / "repository" / "egs" / "toy" / "asr1"
    make_run(folder, "hrf_xs")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def result(recipe):
    found = collect(load_config("conf/train_hrf_xs.yaml"), "merged", recipe)
    return json.loads(json.dumps(found))
