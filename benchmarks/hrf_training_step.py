#!/usr/bin/env python
"""Time one training step of a Conformer: plain, HRF product first, HRF factor by factor.

A step is forward, CTC loss, backward, clipping and AdamW, on random features. The forms take
turns in every round, so that what else the machine does meets all of them; a ratio is that of
two steps of the same round. Product first is how this repository trains HRF; factor by factor
is the same function with every frame going through the wide inner layer.

Example:
    python benchmarks/hrf_training_step.py --size xs --ratios 2 4 8 --threads 2
    python benchmarks/hrf_training_step.py --size m --ratios 4 --forms plain product --json m.json
"""

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from espnet_ext.config.training import resolve_includes
from espnet_ext.errors import UserError, run_cli
from espnet_ext.results.benchmarks import finish, median_range
from espnet_ext.results.environment import processor

FORMS = ("plain", "product", "factors")
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
    conf = encoder_conf(args.size)
    total, each = BATCHES[args.size]
    total = args.batch_seconds or total
    utterances = max(1, round(total / each))
    measured: dict[str, Any] = {
        "size": args.size,
        "encoder_conf": conf,
        "batch": {"utterances": utterances, "seconds_each": each},
        "dtype": args.dtype,
        "device": device_name(args.device),
        "threads": args.threads,
        "results": [],
    }
    for ratio in args.ratios:
        measured["results"] += measure(args, conf, utterances, each, ratio)
    finish(table(measured), measured, args.json)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(BATCHES), default="xs", help="(default: xs)")
    parser.add_argument(
        "--batch-seconds",
        type=positive(float),
        help="audio in a batch (default: 120 for xs, in pieces of 2.5 s; 200 for m, of 10 s)",
    )
    parser.add_argument(
        "--ratios", type=positive(float), nargs="+", default=[2.0, 4.0, 8.0], metavar="R"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=list(FORMS), help="(default: all)"
    )
    parser.add_argument("--threads", type=positive(int), default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=positive(int), default=5, help="rounds (default: 5)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    args = parser.parse_args()
    if "plain" not in args.forms:
        args.forms.insert(0, "plain")  # ratios are to it
    return args


def positive(kind: type) -> Callable[[str], Any]:
    """Return a parser of positive numbers of ``kind``."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = "positive number"
    return parse


def encoder_conf(size: str) -> dict[str, Any]:
    """Options of ESPnet's ConformerEncoder in ``size``, from the recipes' fragments."""
    return resolve_includes(FRAGMENTS / f"conformer_{size}.yaml")["encoder_conf"]


def device_name(device: str) -> str:
    """Name of the processor or GPU."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return processor()


def measure(
    args: argparse.Namespace, conf: dict[str, Any], utterances: int, each: float, ratio: float
) -> list[dict[str, Any]]:
    """Time the forms in turns; return one row a form, times in milliseconds."""
    steps = {
        form: training_step(args, conf, None if form == "plain" else ratio, utterances, each)
        for form in args.forms
    }
    times: dict[str, list[float]] = {form: [] for form in steps}
    for round_ in range(-1, args.repeats):  # the first round warms up
        order = list(steps) if round_ % 2 else list(reversed(steps))
        for form in order:
            elapsed = steps[form][0](form == "factors")
            if round_ >= 0:
                times[form].append(elapsed)
    rows = []
    for form, found in times.items():
        to_plain = [a / b for a, b in zip(found, times["plain"], strict=True)]
        rows.append(
            {
                "form": form,
                "ratio": None if form == "plain" else ratio,
                "parameters": steps[form][1],
                "milliseconds": [1000 * t for t in found],
                "to_plain": to_plain,
            }
        )
    steps.clear()
    gc.collect()
    return rows


def training_step(
    args: argparse.Namespace,
    conf: dict[str, Any],
    ratio: float | None,
    utterances: int,
    each: float,
) -> tuple[Callable[[bool], float], int]:
    """Build a model and its batch; return a timed step and the number of parameters."""
    import torch
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    from espnet_ext.methods.hrf import HRFOptions, apply_hrf

    torch.manual_seed(0)
    encoder = ConformerEncoder(MEL_BINS, **conf)
    if ratio is not None:
        apply_hrf(encoder, HRFOptions(ratio=ratio))
    head = torch.nn.Linear(encoder.output_size(), TOKENS)
    model = torch.nn.ModuleList([encoder, head]).to(args.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    frames = round(each * FRAMES_A_SECOND)
    feats = torch.randn(utterances, frames, MEL_BINS, device=args.device)
    lengths = torch.full((utterances,), frames, device=args.device)
    count = max(1, round(each * TOKENS_A_SECOND))
    targets = torch.randint(1, TOKENS, (utterances, count), device=args.device)
    target_lengths = torch.full((utterances,), count, device=args.device)
    bfloat16 = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")

    def step(factor_by_factor: bool) -> float:
        synchronise(args.device)
        start = time.perf_counter()
        with factorwise(encoder) if factor_by_factor else contextlib.nullcontext():
            with bfloat16:
                hidden, hidden_lengths, _ = encoder(feats, lengths)
                scores = head(hidden)
            scores = scores.float().log_softmax(-1).transpose(0, 1)
            loss = torch.nn.functional.ctc_loss(scores, targets, hidden_lengths, target_lengths)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad()
        synchronise(args.device)
        return time.perf_counter() - start

    return step, sum(p.numel() for p in model.parameters())


def synchronise(device: str) -> None:
    """Wait for what the GPU has been given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


@contextlib.contextmanager
def factorwise(model: Any) -> Iterator[None]:
    """Let the HRF layers of ``model`` push frames through their factors one after another."""
    from torch.nn.utils import parametrize

    from espnet_ext.methods.hrf import factorwise_forward

    layers = [m for m in model.modules() if parametrize.is_parametrized(m)]
    for layer in layers:
        layer.forward = factorwise_forward.__get__(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    batch = measured["batch"]
    return {
        "title": "A training step with HRF",
        "about": "The product of the factors first, as training does it, or every frame through "
        "one factor after the other. The forms take turns; a ratio to plain is of two steps of "
        "the same round.",
        "header": ["form", "ratio", "params in training", "ms a step, median (range)", "to plain"],
        "rows": [
            [
                row["form"],
                "" if row["ratio"] is None else f"{row['ratio']:g}",
                f"{row['parameters'] / 1e6:.2f} M",
                median_range(row["milliseconds"], 0),
                median_range(row["to_plain"], 2),
            ]
            for row in measured["results"]
        ],
        "notes": [
            f"Conformer {measured['size']}, {batch['utterances']} x {batch['seconds_each']:g} s a "
            f"batch, {measured['dtype']}; {measured['device']}, threads {measured['threads']}."
        ],
    }


if __name__ == "__main__":
    sys.exit(run_cli("hrf_training_step.py", main))
