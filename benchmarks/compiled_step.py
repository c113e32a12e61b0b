#!/usr/bin/env python
"""A training step with parts of the encoder compiled (torch.compile), against eager mode.

Batches of several lengths, as a training has them; forward, CTC, backward, clipping and AdamW, on
random features. Eager and compiled take turns in every round; a ratio is of two rounds next to one
another. What is compiled: the whole encoder, its layers one by one, or the parts of its layers.

Example:
    python benchmarks/compiled_step.py --size xs
    python benchmarks/compiled_step.py --size m --compile layers --device cuda
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config, Recipe, resolve_includes
from espnet_ext.errors import UserError, at_least, one_line, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.results.benchmarks import finish, median_range
from espnet_ext.results.environment import processor

FRAGMENTS = Path(__file__).resolve().parents[1] / "egs" / "conf" / "encoders"
FRAMES = (250, 310, 180, 420, 260, 350)  # of the utterances of each batch
MEL_BINS, TOKENS = 80, 200
WHAT = ("encoder", "layers", "parts")


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["xs", "m"], default="xs", help="(default: xs)")
    parser.add_argument("--compile", nargs="+", choices=WHAT, default=WHAT, help="(default: all)")
    least = at_least(max(FRAMES))
    parser.add_argument("--frames", type=least, default=8000, help="in a batch (default: 8000)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="rounds (default: 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; leave --device out for the CPU")
    conf = resolve_includes(FRAGMENTS / f"conformer_{args.size}.yaml")["encoder_conf"]
    measured = {
        "size": args.size,
        "encoder_conf": conf,
        "frames": args.frames,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "threads": args.threads,
        "results": [measure(args, conf, what) for what in args.compile],
    }
    finish(table(measured), measured, args.json)


def measure(args: argparse.Namespace, conf: dict[str, Any], what: str) -> dict[str, Any]:
    """Time rounds over all lengths in turns; or say why it does not compile."""
    import torch._dynamo

    torch._dynamo.reset()  # what another variant has compiled
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it goes on in eager mode
    eager, compiled = (Steps(args, conf) for _ in range(2))
    compile_(compiled.model.encoder, what)
    start = time.perf_counter()
    try:
        compiled()
        first = time.perf_counter() - start
        times = [(eager(), compiled()) for _ in range(args.repeats + 1)][1:]  # the first warms up
    except Exception as error:  # of many types, from inside the compiler
        return {"compiled": what, "error": one_line(error)[:200]}
    return {
        "compiled": what,
        "first_round_s": first,
        "eager_s": [a for a, _ in times],
        "compiled_s": [b for _, b in times],
        "eager_to_compiled": [a / b for a, b in times],
    }


def compile_(encoder: Any, what: str) -> None:
    """Compile an encoder, its layers, or the parts of them, for lengths of all kinds."""
    if what == "encoder":
        chosen = [encoder]
    elif what == "layers":
        chosen = list(encoder.encoders)
    else:
        names = ("feed_forward", "feed_forward_macaron", "conv_module")
        chosen = [getattr(layer, name) for layer in encoder.encoders for name in names]
    for module in chosen:
        module.compile(dynamic=True)


class Steps:
    """A CTC recogniser, and training steps over batches of all lengths."""

    def __init__(self, args: argparse.Namespace, conf: dict[str, Any]):
        import torch

        from espnet_ext.bridge.build import build_model

        torch.manual_seed(0)
        espnet: dict[str, Any] = {"encoder": "conformer", "encoder_conf": dict(conf)}
        espnet |= {"model_conf": {"ctc_weight": 1.0}, "input_size": MEL_BINS, "normalize": None}
        config = Config(Path("benchmark.yaml"), "benchmark", Recipe(), espnet)
        self.model: Any = build_model(Experiment.of(config), TOKENS).to(args.device).train()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batches = [self._batch(args, frames) for frames in FRAMES]

    def _batch(self, args: argparse.Namespace, frames: int) -> dict[str, Any]:
        import torch

        count, tokens = max(1, args.frames // frames), frames // 40
        return {
            "speech": torch.randn(count, frames, MEL_BINS, device=args.device),
            "speech_lengths": torch.full((count,), frames, device=args.device),
            "text": torch.randint(2, TOKENS - 1, (count, tokens), device=args.device),
            "text_lengths": torch.full((count,), tokens, device=args.device),
        }

    def __call__(self) -> float:
        """Seconds of a round."""
        import torch

        start = time.perf_counter()
        for batch in self.batches:
            self.model(**batch)[0].backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimiser.step()
            self.optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    rows = []
    for row in measured["results"]:
        if "error" in row:
            cells = ["", "", f"fails: {row['error']}"]
        else:
            cells = [
                f"{row['first_round_s']:.0f}",
                median_range(row["eager_s"], 2),
                median_range(row["eager_to_compiled"], 2),
            ]
        rows.append([row["compiled"], *cells])
    return {
        "title": "A training step with torch.compile",
        "about": "Rounds over six lengths: forward, CTC, backward, clipping, AdamW, on random "
        "features. Eager and compiled take turns; above 1 compiled is faster.",
        "header": ["compiled", "first round, s", "eager round, s", "eager / compiled"],
        "rows": rows,
        "notes": [
            f"Conformer {measured['size']}, {measured['frames']} frames a batch, "
            f"torch {measured['torch']}; {measured['device']}, threads {measured['threads']}."
        ],
    }


if __name__ == "__main__":
    sys.exit(run_cli("compiled_step.py", main))
