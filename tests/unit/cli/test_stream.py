"""The verb `stream`: partial results, latency, and what it refuses."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from espnet_ext.errors import UserError
from tests.fixtures import streams
from tests.fixtures.streams import RATE, audio


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    streams.make(root)
    return root


def run(experiment, *words, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "espnet_ext.cli.main", "stream", "train_tiny.yaml", *words]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=experiment, check=False)


def test_verb_on_standard_input_prints_partial_results_and_latency(experiment, tmp_path):
    raw = (experiment / "speech.wav").read_bytes()
    figures = tmp_path / "figures.json"
    done = run(experiment, "-", "--variant", "shared", "--json", str(figures), stdin=raw)
    assert done.returncode == 0, done.stderr
    *partial, last = done.stdout.decode().splitlines()
    found = json.loads(figures.read_text())
    assert found.pop("text") == partial[-1].partition(" s | ")[2]
    assert all(" s  " in line for line in partial[:-1])
    assert json.loads(last) == found
    assert len(partial) > 2
    assert found["audio_seconds"] == 3.3
    assert found["chunks"] == 21
    assert 0 < found["chunk_ms_p50"] <= found["chunk_ms_p95"]
    # A token needs its chunk and its look-ahead: 320 ms at least after the start.
    assert found["first_token_ms"] > 320
    assert found["token_delay_ms_p50"] > 160


def test_verb_says_that_a_stream_is_silent_in_one_line(experiment, tmp_path, monkeypatch, capsys):
    from espnet_ext.cli import stream

    monkeypatch.chdir(experiment)
    silent = audio(tmp_path / "silent.wav", np.zeros(RATE, np.float32))
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    stream.run(parser.parse_args(["train_tiny.yaml", silent, "--variant", "shared"]))
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("espnet-ext stream")]
    assert len(lines) == 1 and "silence" in lines[0] and silent in lines[0]
    stream.run(parser.parse_args(["train_tiny.yaml", "speech.wav", "--variant", "shared"]))
    assert "warning" not in capsys.readouterr().err


def test_verb_refuses_in_one_line(experiment, monkeypatch):
    from espnet_ext.cli import stream

    monkeypatch.chdir(experiment)
    asked = {"config": "train_tiny.yaml", "audio": "speech.wav", "tag": None, "method": None}
    for change, said in (
        ({"variant": "nested"}, "run stage 5"),
        ({"variant": "shared", "audio": "none.wav"}, "no audio file"),
    ):
        args = argparse.Namespace(threads=1, json=None, **{**asked, **change})
        with pytest.raises(UserError, match=said) as caught:
            stream.run(args)
        assert "\n" not in str(caught.value)
