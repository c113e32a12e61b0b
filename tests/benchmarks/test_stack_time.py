"""The benchmark of stacks: what it counts, that systems take turns, what it refuses."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.results.pages.index import pages
from espnet_ext.results.store import read_results

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks/stack_time.py"
SMALL = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
}


def call(*words):
    return subprocess.run(
        [sys.executable, PROGRAM, *words],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_counts_and_times_all_systems(tmp_path):
    out = tmp_path / "times.json"
    words = ["--architecture", json.dumps(SMALL), "--remove", "1", "--mimic", "linear:8"]
    words += ["--seconds", "1", "--repeats", "3", "--warmup", "1", "--json", str(out)]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["measured"]
    rows = found["systems"]
    assert list(rows) == ["whole", "front", "without 1", "mimic linear:8"]
    assert all(len(row["rounds"]) == 3 for row in rows.values())
    behind = [a - b for a, b in zip(rows["whole"]["rounds"], rows["front"]["rounds"], strict=True)]
    assert rows["whole"]["stack_ms"] == pytest.approx(1e3 * sorted(behind)[1])
    assert rows["front"]["stack_ms"] == 0
    assert found["threads"] == 1
    layer = 4 * 16 * 16 + 3 * 16 + 2 * 16 * 24 + 24 + 16 + 4 * 16  # keys have no bias
    counts = {name: row["stack_parameters"] for name, row in rows.items()}
    assert counts["whole"] - counts["without 1"] == layer
    assert counts["mimic linear:8"] == 2 * 16 * 8 + 8 + 16 + 16
    assert counts["front"] == 0
    # MACs of one second, 50 frames: a linear mimic is two products; a layer with attention more.
    macs = {name: row["macs_per_second"] for name, row in rows.items()}
    assert macs["mimic linear:8"] - macs["front"] == 50 * 2 * 16 * 8
    one = 50 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 50 * 50 * 16
    assert macs["whole"] - macs["without 1"] == one
    target = tmp_path / "results/benchmarks/stack_time.small.json"
    target.parent.mkdir(parents=True)
    out.rename(target)
    results = read_results(tmp_path / "results")
    assert results.runs == {}  # it is no run
    page = pages(results, {}, tmp_path / "results")[target.with_name("README.md")]
    assert "## Time of stacks, whole and mimicked: small" in page
    assert f"| mimic linear:8 | {rows['mimic linear:8']['parameters']:,} " in page
    assert shlex.join(["python", "benchmarks/stack_time.py", *words]) in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give the folder of a model, or --architecture"),
        (["--architecture", json.dumps(SMALL), "--remove", "9"], "no layer 9"),
        (["--architecture", json.dumps(SMALL), "--remove", "a"], "takes numbers as in 2,3"),
        (["--architecture", json.dumps(SMALL), "--mimic", "linear"], "takes kind:width[:split]"),
        (["--architecture", json.dumps(SMALL), "--mimic", "linear:8:3"], "not inside"),
    ],
)
def test_what_it_refuses(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *words])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ending.value.code == 1
    assert said in capsys.readouterr().err
