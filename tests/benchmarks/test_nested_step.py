"""The benchmark of a family's training step: which forms it times, what it counts and refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks/nested_step.py"
TINY = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 2}


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *words])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    return ending.value.code


def test_it_times_every_form_against_the_largest_network(monkeypatch, tmp_path, capsys):
    out = tmp_path / "times.json"
    words = ["--encoder", json.dumps(TINY), "--depths", "2", "1", "--bits", "32", "4"]
    words += ["--samples", "all", "0", "1", "--apart", "--batch-seconds", "5", "--repeats", "2"]
    assert call(monkeypatch, *words, "--json", str(out)) == 0
    found = json.loads(out.read_text())["measured"]
    rows = {row["form"]: row for row in found["results"]}
    assert list(rows) == ["largest", "all", "0", "1", "all, one by one"]
    assert [row["members"] for row in rows.values()] == [1, 4, 2, 3, 4]
    assert [row["of"] for row in rows.values()] == [1, 4, 4, 4, 4]
    assert rows["largest"]["to_largest"] == [1.0, 1.0]
    for row in rows.values():
        times = zip(row["milliseconds"], rows["largest"]["milliseconds"], strict=True)
        assert row["to_largest"] == pytest.approx([a / b for a, b in times])
        assert row["peak_mb"] == "not measured"
    # Memory repeats exactly: what is computed once is held once.
    held = {form: row["held_mb"] for form, row in rows.items()}
    assert held["largest"] < held["0"] < held["all"] < held["all, one by one"]
    table = capsys.readouterr().out.splitlines()
    forms = [line.split("|")[1].strip() for line in table if line.startswith("|")]
    assert forms[-len(rows) :] == list(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "some"], "--samples takes all or numbers"),
        (["--encoder", "[]"], "--encoder takes JSON"),
        (["--depths", "9", "6"], "depth 9 is more than the encoder's 6 layers"),
        (["--bits", "5"], "bits must be one of"),
    ],
)
def test_what_it_refuses(monkeypatch, capsys, words, message):
    assert call(monkeypatch, *words) == 1
    assert message in capsys.readouterr().err
