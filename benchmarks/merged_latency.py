#!/usr/bin/env python
"""Time a merged HRF model against the plain model of the same shape, in turns, in one process.

Both are built with random weights; a config names the plain one as its baseline. In every round
each classifies the same utterance (features, encoder to classes, without the frontend), now one
first and now the other; a ratio is that of the two times of a round, the figure their median with
its 95 % interval by order statistics. "plain again" is a second plain model: what noise looks like.

Example:
    python benchmarks/merged_latency.py egs/hedgewars/ser1/conf/train_hrf_{speechformer,\
convtransformer,conformer}_s.yaml --json results/benchmarks/merged_latency.json
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config, load_config
from espnet_ext.errors import UserError, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.results.benchmarks import finish

FORMS = ("plain", "plain again", "merged")


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="+", help="training configs with HRF")
    parser.add_argument("--seconds", type=float, default=3.0, help="of speech (default: 3)")
    parser.add_argument("--rounds", type=int, default=500, help="(default: 500)")
    parser.add_argument("--calls", type=int, default=1, help="in a round (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    args = parser.parse_args()
    if args.rounds < 10 or args.calls < 1 or not args.seconds >= 0.5:
        raise UserError("--rounds must be at least 10, --calls 1 and --seconds 0.5")
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

    torch.set_num_threads(1)
    measured = {
        "seconds": args.seconds,
        "calls": args.calls,
        "threads": 1,
        "results": [measure(load_config(path), args) for path in args.configs],
    }
    finish(table(measured), measured, args.json)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    rows = []
    for row in measured["results"]:
        plain = statistics.median(row["times"]["plain"])
        cells = [row["model"], f"{row['parameters']:,}", f"{1000 * plain:.2f}"]
        for form in FORMS[1:]:
            found = row["to_plain"][form]
            low, high = found["interval"]
            cells.append(f"{found['ratio']:.3f} ({low:.3f}-{high:.3f})")
        rows.append(cells)
    rounds = len(measured["results"][0]["times"]["plain"])
    return {
        "title": "Latency of merged models",
        "about": "An utterance through encoder and head. The forms take turns in one process; a "
        "ratio is of two times of the same round; the figure is their median with its 95 % "
        "interval by order statistics. The second plain model shows what noise there is.",
        "header": [
            *("model", "params", "plain, ms (median)", "plain again, to plain", "merged, to plain")
        ],
        "rows": rows,
        "notes": [
            f"{measured['seconds']:g} s of features, {rounds} rounds, calls in each: "
            f"{measured['calls']}, {measured['threads']} thread."
        ],
    }


def measure(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Time the forms of one config's model; times in seconds a call, for every round."""
    import torch

    models = build_forms(config)
    width = Experiment.of(config).feature_width
    if width is None:
        raise UserError(f"{config.path}: its features are not in arks")
    x = torch.randn(1, round(100 * args.seconds), width)
    lengths = torch.tensor([x.shape[1]])
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    with torch.inference_mode():
        for round_ in range(-3, args.rounds):  # the first rounds warm up
            turn = round_ % len(FORMS)
            for form in (*FORMS[turn:], *FORMS[:turn]):
                model = models[form]
                start = time.perf_counter()
                for _ in range(args.calls):
                    encoded, encoded_lengths, _ = model.encoder(x, lengths)
                    model.decoder(encoded, encoded_lengths)
                if round_ >= 0:
                    times[form].append((time.perf_counter() - start) / args.calls)
    return {
        "model": config.tag,
        "parameters": sum(p.numel() for p in models["merged"].parameters()),
        "times": {form: [round(t, 7) for t in found] for form, found in times.items()},
        "to_plain": {form: ratio(times[form], times["plain"]) for form in FORMS[1:]},
    }


def build_forms(config: Config) -> dict[str, Any]:
    """Two plain models and the merged one, in evaluation mode.

    Raises:
        UserError: the config is that of no classifier, or names no baseline in its folder.
    """
    from espnet_ext.bridge.build import build_model
    from espnet_ext.methods.deploy import deploy

    if config.recipe.task != "cls" or config.recipe.baseline is None:
        raise UserError(f"{config.path}: give a classifier that names its recipe: baseline")
    plain = load_config(config.path.with_name(f"train_{config.recipe.baseline}.yaml"))
    models = {
        "plain": build_model(Experiment.of(plain)),
        "plain again": build_model(Experiment.of(plain)),
        "merged": deploy(build_model(Experiment.of(config)), "merged"),
    }
    counts = {sum(p.numel() for p in model.parameters()) for model in models.values()}
    if len(counts) > 1:
        raise UserError(f"{config.path}: its baseline is not of its size: {sorted(counts)}")
    return models


def ratio(times: list[float], plain: list[float]) -> dict[str, Any]:
    """Median of the ratios of all rounds, and its 95 % interval by order statistics."""
    import numpy as np
    from scipy import stats

    ratios = np.array(times) / np.array(plain)
    # Not a mean: a call that the system interrupts takes many times as long.
    found = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return {"ratio": float(np.median(ratios)), "interval": [float(found.low), float(found.high)]}


if __name__ == "__main__":
    sys.exit(run_cli("merged_latency.py", main))
