#!/usr/bin/env python
"""Cost of one training step of a nested family, as a multiple of the largest network's step.

A step is forward, loss (CTC, and KL from the largest network), backward, clipping and AdamW, on
random features. The forms take turns in every round, so that what else the machine does meets all
of them; a ratio is that of two steps of the same round:

    largest          the plain encoder alone
    all              every member of the family, what they have in common computed once
    n                the largest, the smallest and n drawn
    all, one by one  every member in a separate pass, in one step, without KL

The table also has the memory that a step holds for its backward pass (activations and rounded
weights).

Example:
    python benchmarks/nested_step.py --size xs --depths 6 4 2 --bits 32 8 4 --samples all 0 1
    python benchmarks/nested_step.py --depths 6 3 --widths 384 192 --bits 32 4 --apart
    python benchmarks/nested_step.py --encoder '{"input_layer": "dw_conv2d8"}' --depths 6 4 2
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config, Recipe, resolve_includes
from espnet_ext.errors import UserError, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.results.benchmarks import finish, median_range
from espnet_ext.results.environment import processor
from espnet_ext.results.schema import NOT_MEASURED

LARGEST, APART = "largest", "all, one by one"
FRAGMENTS = Path(__file__).resolve().parents[1] / "egs" / "conf" / "encoders"
BATCHES = {"xs": (120.0, 2.5), "m": (200.0, 10.0)}  # seconds of audio in a batch, in an utterance
MEL_BINS = 80
FRAMES_A_SECOND = 100
TOKENS = 200
TOKENS_A_SECOND = 2.5  # slow enough for 8-fold subsampling to hold every repeat


def main() -> None:
    """Parse the command line, measure, print a table."""
    args = parse_arguments()
    import torch

    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; leave --device out for the CPU")
    conf = encoder_conf(args.size, args.encoder)
    total, each = BATCHES[args.size]
    utterances = max(1, round((args.batch_seconds or total) / each))
    measured = {
        "size": args.size,
        "encoder_conf": conf,
        "family": family_options(args),
        "batch": {"utterances": utterances, "seconds_each": each},
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "threads": args.threads,
        "results": measure(args, conf, utterances, each),
    }
    finish(table(measured), measured, args.json)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(BATCHES), default="xs", help="(default: xs)")
    parser.add_argument("--encoder", default="{}", metavar="JSON", help="options to change of it")
    parser.add_argument("--depths", type=whole, nargs="+", default=[], help="(default: all layers)")
    parser.add_argument("--widths", type=whole, nargs="+", default=[], help="(default: all units)")
    parser.add_argument("--bits", type=whole, nargs="+", default=[32, 8, 4])
    parser.add_argument(
        "--samples", nargs="+", default=["all"], help="all, or numbers of members to draw"
    )
    parser.add_argument("--apart", action="store_true", help="also members one by one")
    parser.add_argument("--batch-seconds", type=seconds, help="audio in a batch")
    parser.add_argument("--threads", type=whole, default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=whole, default=5, help="rounds (default: 5)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    return parser.parse_args()


def whole(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def encoder_conf(size: str, changed: str) -> dict[str, Any]:
    """Options of the Conformer in ``size``, from the recipes' fragments, some of them changed."""
    try:
        over = json.loads(changed)
    except ValueError:
        over = None
    if not isinstance(over, dict):
        raise UserError(f"--encoder takes JSON as in '{{\"num_blocks\": 12}}', not {changed!r}")
    return resolve_includes(FRAGMENTS / f"conformer_{size}.yaml")["encoder_conf"] | over


def family_options(args: argparse.Namespace) -> dict[str, Any]:
    """The family's options but for the sampling."""
    return {"depths": args.depths, "widths": args.widths, "bits": args.bits}


def measure(
    args: argparse.Namespace, conf: dict[str, Any], utterances: int, each: float
) -> list[dict[str, Any]]:
    """Time the forms in turns; return one row a form, times in milliseconds."""
    forms = [LARGEST, *args.samples, *([APART] if args.apart else [])]
    steps = {form: Step(args, conf, form, utterances, each) for form in forms}
    times: dict[str, list[float]] = {form: [] for form in steps}
    for round_ in range(-1, args.repeats):  # the first round warms up
        order = list(steps) if round_ % 2 else list(reversed(steps))
        for form in order:
            elapsed = steps[form]()
            if round_ >= 0:
                times[form].append(elapsed)
    rows = []
    for form, step in steps.items():
        held, peak = step.memory()
        rows.append(
            {
                "form": form,
                "members": step.members,
                "of": step.family,
                "milliseconds": [1000 * t for t in times[form]],
                "to_largest": [a / b for a, b in zip(times[form], times[LARGEST], strict=True)],
                "held_mb": held / 1e6,
                "peak_mb": peak if isinstance(peak, str) else peak / 1e6,
            }
        )
    steps.clear()
    gc.collect()
    return rows


class Step:
    """A timed training step of one form, and what it holds in memory."""

    def __init__(
        self,
        args: argparse.Namespace,
        conf: dict[str, Any],
        form: str,
        utterances: int,
        each: float,
    ):
        import torch

        from espnet_ext.methods.nested import nested_stack

        self.device, self.form = args.device, form
        self.model = build(args, conf, form).to(args.device).train()
        stack = nested_stack(self.model.encoder)
        self.family = 1 if stack is None else len(stack.family)
        drawn = form not in (LARGEST, "all", APART)
        self.members = min(self.family, 2 + int(form)) if drawn else self.family
        self.autocast = torch.autocast(
            args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        frames, count = round(each * FRAMES_A_SECOND), max(1, round(each * TOKENS_A_SECOND))
        self.batch = {
            "speech": torch.randn(utterances, frames, MEL_BINS, device=args.device),
            "speech_lengths": torch.full((utterances,), frames, device=args.device),
            "text": torch.randint(2, TOKENS - 1, (utterances, count), device=args.device),
            "text_lengths": torch.full((utterances,), count, device=args.device),
        }

    def __call__(self) -> float:
        """Seconds that one step takes."""
        import torch

        self._wait()
        start = time.perf_counter()
        with self.autocast:
            loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._wait()
        return time.perf_counter() - start

    def memory(self) -> tuple[int, int | str]:
        """Bytes held for the backward pass, and the most that a GPU had allocated in a step."""
        import torch

        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        held: dict[int, int] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), self.autocast:
            loss = self._loss()
        loss.backward()
        self.optimiser.zero_grad()
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else NOT_MEASURED
        return sum(held.values()), peak

    def _loss(self) -> Any:
        if self.form != APART:
            return self.model(**self.batch)[0]
        from espnet2.asr.espnet_model import ESPnetASRModel

        from espnet_ext.methods.nested import nested_stack

        stack: Any = nested_stack(self.model.encoder)
        total: Any = 0.0
        for member in stack.family:
            with stack.as_member(member.name):
                total = total + ESPnetASRModel.forward(self.model, **self.batch)[0]
        return total

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def build(args: argparse.Namespace, conf: dict[str, Any], form: str) -> Any:
    """A CTC recogniser: with the plain encoder, or with the family."""
    import torch

    from espnet_ext.bridge.build import build_model

    torch.manual_seed(0)
    espnet: dict[str, Any] = {"encoder": "conformer", "encoder_conf": dict(conf)}
    if form != LARGEST:
        if form not in ("all", APART) and not form.isdecimal():
            raise UserError(f"--samples takes all or numbers of members to draw, not {form!r}")
        sample = int(form) if form.isdecimal() else "all"
        espnet["encoder"] = "nested_conformer"
        espnet["encoder_conf"]["nested"] = family_options(args) | {"sample": sample}
    espnet |= {"model_conf": {"ctc_weight": 1.0}, "input_size": MEL_BINS, "normalize": None}
    config = Config(Path("benchmark.yaml"), "benchmark", Recipe(), espnet)
    return build_model(Experiment.of(config), TOKENS)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    batch = measured["batch"]
    header = ["sub-networks", "of the family", "ms a step, median (range)", "to the largest"]
    return {
        "title": "A training step of a nested family",
        "about": "Forward, losses with KL, backward, clipping, AdamW, on random features. The "
        "forms take turns; a ratio is of two steps of the same round. The largest is the plain "
        "encoder alone.",
        "header": [*header, "held for backward, MB"],
        "rows": [
            [
                row["form"],
                f"{row['members']} of {row['of']}",
                median_range(row["milliseconds"], 0),
                median_range(row["to_largest"], 2),
                f"{row['held_mb']:.1f}",
            ]
            for row in measured["results"]
        ],
        "notes": [
            f"Conformer {measured['size']}, {batch['utterances']} x {batch['seconds_each']:g} s a "
            f"batch, {measured['dtype']}; {measured['device']}, threads {measured['threads']}."
        ],
    }


if __name__ == "__main__":
    sys.exit(run_cli("nested_step.py", main))
