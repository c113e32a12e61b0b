"""The benchmark of torch.compile: its ratio is 1 where nothing is compiled; a failure is a row."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks/compiled_step.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("compiled_step", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_in_turns_and_a_failure(benchmark, monkeypatch, tmp_path, capsys):
    def compile_(encoder, what):
        if what == "encoder":
            encoder.forward = None  # cannot be called

    monkeypatch.setattr(benchmark, "compile_", compile_)
    path = tmp_path / "made.json"
    words = ["--frames", "420", "--repeats", "2", "--compile", "encoder", "parts"]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *words, "--json", str(path)])
    benchmark.main()
    failed, measured = json.loads(path.read_text())["measured"]["results"]
    assert "not callable" in failed["error"]
    pairs = zip(measured["eager_s"], measured["compiled_s"], strict=True)
    assert measured["eager_to_compiled"] == pytest.approx([a / b for a, b in pairs])
    assert len(measured["eager_s"]) == 2
    assert "fails: " in capsys.readouterr().out
