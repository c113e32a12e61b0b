"""A deployed transducer that streams, for the tests of streaming."""

import pytest

from espnet_ext.bridge.deployed.speech_input import SpeechInput
from tests.fixtures import streams
from tests.fixtures.streams import METHODS, RATE


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    streams.make(root)
    return root


@pytest.fixture(params=METHODS)
def streamer(request, experiment, monkeypatch):
    from espnet_ext.bridge.streaming.transducer import TransducerStreamer

    monkeypatch.chdir(experiment)
    model = experiment / "exp/tiny/deploy/shared"
    return TransducerStreamer(model, request.param, METHODS[request.param], SpeechInput(RATE))
