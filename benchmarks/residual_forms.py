#!/usr/bin/env python
"""Size and speed of the deployed forms of streaming models, with random weights.

For every config and each of its deployed forms, in a separate process: bytes of the file, time to
build and load, 10 s offline, chunks of a stream (p50, p95), peak memory.

Example:
    python benchmarks/residual_forms.py egs/fotaq/asr1/conf/paper/train_stream_paper.yaml \
        egs/fotaq/asr1/conf/paper/train_residual_stream_paper_k3.yaml --json forms.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.bridge.memory import peak_rss_mb
from espnet_ext.errors import UserError, run_cli
from espnet_ext.results.benchmarks import finish


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="+", help="training configs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="of the 10 s (default: 5)")
    parser.add_argument("--chunks", type=int, default=60, help="of the stream (default: 60)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # form and file: the child
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    rows = []
    for config in args.configs:
        with tempfile.TemporaryDirectory() as folder:
            rows += [
                {"config": config.stem, "form": form, **child(args, config, folder, form)}
                for form in save_forms(config, Path(folder))
            ]
    measured = {"results": rows, "threads": args.threads}
    finish(table(measured), measured, args.json)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    header = ["config", "form", "file MB", "load s", "10 s offline, ms", "chunk, ms p50", "p95"]
    return {
        "title": "Deployed forms of streaming models",
        "about": "Random weights, each form in a separate process; medians. File, loading and "
        "peak memory are the whole model's, the times its encoder's alone, without features and "
        "search. `shared` keeps what layers share once, with the residuals; `merged` has plain "
        "layers.",
        "header": [*header, "peak MB", "of it before the model"],
        "rows": [
            [
                row["config"].removeprefix("train_"),
                row["form"],
                *(f"{row[key]:.2f}" for key in ("file_mb", "load_s")),
                *(f"{row[key]:.1f}" for key in ("offline_10s_ms", "chunk_ms_p50", "chunk_ms_p95")),
                *(f"{row[key]:,.0f}" for key in ("peak_rss_mb", "rss_before_model_mb")),
            ]
            for row in measured["results"]
        ],
        "notes": [f"Threads {measured['threads']}."],
    }


def save_forms(path: Path, folder: Path) -> list[str]:
    """Write every form of the config's model with random weights; return their names."""
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

        from espnet_ext.bridge.build import build_model
        from espnet_ext.bridge.checkpoint import file_state, save
        from espnet_ext.config.training import load_config
        from espnet_ext.experiment import Experiment
        from espnet_ext.methods.deploy import deploy, variants

        model = build_model(Experiment.of(load_config(path)))
        with torch.no_grad():
            for parameter in model.parameters():  # residuals start at zero
                parameter.add_(0.01 * torch.randn(parameter.shape))
        forms = [form for form in variants(model) if form != "plain"]
        for form in forms:
            save(file_state(deploy(model, form), form), folder / f"{form}.pth")
    return forms


def child(args: argparse.Namespace, config: Path, folder: str, form: str) -> dict[str, Any]:
    """Measure one form in a separate process."""
    options = ["--threads", args.threads, "--repeats", args.repeats, "--chunks", args.chunks]
    command = [sys.executable, __file__, config, "--one", form, f"{folder}/{form}.pth", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{form}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load one form and time it."""
    from espnet_ext.bridge.muted import muted

    with muted():
        import numpy as np
        import torch

        form, file = args.one
        torch.set_num_threads(args.threads)
        before = peak_rss_mb()
        start = time.perf_counter()
        model = load(args.configs[0], form, Path(file))
        loaded = time.perf_counter() - start
    x, lengths = torch.randn(1, 1000, 80), torch.tensor([1000])
    chunk = model.encoder.geometry.chunk * 4
    state, whole, chunks = model.encoder.init_state(1), [], []
    with torch.no_grad():
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            model.encoder(x, lengths)
            whole.append(time.perf_counter() - start)
        for _ in range(args.chunks + 5):
            start = time.perf_counter()
            _, _, state = model.encoder.forward_chunk(torch.randn(1, chunk, 80), state)
            chunks.append(time.perf_counter() - start)
    return {
        "file_mb": Path(file).stat().st_size / 1e6,
        "load_s": loaded,
        "offline_10s_ms": 1000 * float(np.median(whole[1:])),
        "chunk_ms_p50": 1000 * float(np.percentile(chunks[5:], 50)),
        "chunk_ms_p95": 1000 * float(np.percentile(chunks[5:], 95)),
        "peak_rss_mb": peak_rss_mb(),
        "rss_before_model_mb": before,
    }


def load(path: Path, form: str, file: Path) -> Any:
    """Build the deployed form of a config's model and load ``file``."""
    import dataclasses

    from espnet_ext.bridge.build import build_model
    from espnet_ext.bridge.checkpoint import expand_state, load_state
    from espnet_ext.bridge.deployed.folder import stock_arguments
    from espnet_ext.config.training import load_config
    from espnet_ext.experiment import Experiment

    config = load_config(path)
    arguments = stock_arguments(config.espnet, form)
    kept = {key: arguments[key] for key in ("encoder", "encoder_conf")}
    deployed = dataclasses.replace(config, espnet={**config.espnet, **kept})
    model = build_model(Experiment.of(deployed))
    model.load_state_dict(expand_state(model, load_state(file)))
    return model


if __name__ == "__main__":
    sys.exit(run_cli("residual_forms.py", main))
