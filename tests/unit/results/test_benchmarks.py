"""Tables of benchmarks: what each program writes, and the page that holds them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.results.benchmarks import median_range
from tests.fixtures.a_run import run_verb

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "whole_job.py"


def test_the_whole_job_is_told_where_it_was_measured(recipe):
    path = "results/benchmarks/whole_job.json"
    command = [sys.executable, str(BENCHMARK), "--json", path, "--", "true"]
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    assert "The main job whole" not in (root / "RESULTS.md").read_text()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    run_verb("--all")
    made = json.loads((root / path).read_text())
    text = (root / "results/benchmarks/README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `true`")]
    assert f" {made['measured']['disk_mb']:,} " in row
    assert f"commit {made['commit']}" in text
    index = (root / "RESULTS.md").read_text()
    assert "- [The main job whole](results/benchmarks/README.md#the-main-job-whole)" in index
    failed = subprocess.run([*command[:-1], "false"], cwd=root, capture_output=True)
    assert failed.returncode == 1
    assert json.loads((root / path).read_text()) == made


STEP = {
    "size": "xs",
    "encoder_conf": {"num_blocks": 6},
    "batch": {"utterances": 48, "seconds_each": 2.5},
    "dtype": "float32",
    "device": "some CPU",
    "threads": 2,
    "results": [
        {
            "form": "plain",
            "ratio": None,
            "parameters": 1620000,
            "milliseconds": [500.0, 520.0, 900.0],
            "to_plain": [1.0, 1.0, 1.0],
        },
        {
            "form": "product",
            "ratio": 4.0,
            "parameters": 3980000,
            "milliseconds": [600.0, 610.0, 990.0],
            "to_plain": [1.2, 1.17, 1.1],
        },
    ],
}
LATENCY = {
    "seconds": 3.0,
    "calls": 5,
    "threads": 1,
    "results": [
        {
            "model": "hrf_a_s",
            "parameters": 12345,
            "times": {"plain": [0.004, 0.006, 0.005], "merged": [0.004, 0.006, 0.006]},
            "to_plain": {
                "plain again": {"ratio": 0.998, "interval": [0.99, 1.006]},
                "merged": {"ratio": 1.0621, "interval": [0.95, 1.2]},
            },
        }
    ],
}
NESTED = {
    **{key: STEP[key] for key in ("size", "batch", "dtype", "device", "threads")},
    "encoder_conf": {"num_blocks": 6},
    "family": {"depths": [6, 3], "widths": [], "bits": [32, 4]},
    "results": [
        {
            "form": "all",
            "members": 4,
            "of": 4,
            "milliseconds": [500.0, 520.0, 700.0],
            "to_largest": [2.1, 2.0, 2.6],
            "held_mb": 94.44,
            "peak_mb": "not measured",
        }
    ],
}
VARIANTS = {
    "threads": 1,
    "results": [
        {
            "config": "train_residual_k3",
            "form": "shared",
            "file_mb": 12.345,
            "load_s": 0.5,
            "offline_10s_ms": 740.04,
            "chunk_ms_p50": 9.87,
            "chunk_ms_p95": 12.0,
            "peak_rss_mb": 1515.2,
            "rss_before_model_mb": 500,
        }
    ],
}
DECODING = {
    "espnet": [3.0, 2.0, 2.5],
    "ours": [1.0, 1.25, 2.0],
    "ratio": 2.0,
    "audio_seconds": 160.4,
    "utterances": 64,
    "tokens_per_second": 2.1,
    "batch": 16,
    "threads": 1,
    "search": {"espnet": [0.9], "ours": [0.3]},
}
PRODUCT = ["product", "4", "3.98 M", "610 (600-990)", "1.17 (1.10-1.20)"]
A_VARIANT = ["residual_k3", "shared", "12.35", "0.50", "740.0", "9.9", "12.0", "1,515", "500"]
SPREAD = ["2.50 (2.00-3.00)", "1.25 (1.00-2.00)"]


@pytest.mark.parametrize(
    ("program", "measured", "row"),
    [
        ("hrf_training_step", STEP, PRODUCT),
        (
            "merged_latency",
            LATENCY,
            ["hrf_a_s", "12,345", "5.00", "0.998 (0.990-1.006)", "1.062 (0.950-1.200)"],
        ),
        ("nested_step", NESTED, ["all", "4 of 4", "520 (500-700)", "2.10 (2.00-2.60)", "94.4"]),
        ("residual_forms", VARIANTS, A_VARIANT),
        ("transducer_decoding", DECODING, ["64 (160 s)", "16", *SPREAD, "2.00", "3.00"]),
    ],
)
def test_a_benchmark_writes_its_table_with_its_command(
    recipe, monkeypatch, capsys, program, measured, row
):
    root = recipe.parents[2]
    path = root / f"results/benchmarks/{program}.one.json"
    script = runpy.run_path(str(BENCHMARK.with_name(f"{program}.py")))
    monkeypatch.setattr(sys, "argv", [f"/somewhere/benchmarks/{program}.py", "a.yaml", "--b", "4"])
    script["finish"](script["table"](measured), measured, str(path))
    assert f"| {row[0]} " in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert made["rows"][-1] == row and made["measured"] == measured
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    lines = (root / "results/benchmarks/README.md").read_text().splitlines()
    assert f"## {made['title']}: one" in lines
    assert f"python benchmarks/{program}.py a.yaml --b 4" in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert row in cells


def test_a_range_is_of_all_rounds():
    assert median_range([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"


def test_a_benchmarks_file_that_does_not_fit_is_named_and_the_page_kept(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    page = (root / "RESULTS.md").read_text()
    path = root / "results/benchmarks/nested_step.a.json"
    path.parent.mkdir()
    for content, part in (("{", "not valid JSON"), ('{"wall": 1}', "unknown key 'wall'")):
        path.write_text(content)
        with pytest.raises(UserError, match=f"{path.name}: {part}"):
            run_verb("--all")
    assert (root / "RESULTS.md").read_text() == page
