#!/usr/bin/env python
"""Time a pretrained stack whole, pruned and mimicked, against each other in one run.

Protocol: evaluation mode, no gradients, one thread by default, the same random speech for all.
The systems take turns, so that what else the machine does hits all of them; rounds that warm up
are not counted, the median of the others is. On a GPU times are of CUDA events. ``front`` is the
front end alone (of Whisper that includes its log-mel, on the CPU): no mimic can be faster.
``stack_ms`` is the time after it: the median over rounds of the difference to the front end.
Time does not depend on the weights: mimics are random, and --architecture needs no weights at all.

Example:
    python benchmarks/stack_time.py downloads/whisper_base --remove 2 --remove 2,3 \
        --mimic linear:64 --mimic linear:512:3 --mimic transformer:512 --json times.json
    python ../../../benchmarks/stack_time.py downloads/whisper_base --mimic linear:64 \
        --json ../../../results/benchmarks/stack_time.whisper_base.json  # then: report --all
    python benchmarks/stack_time.py --architecture '{"model_type": "wav2vec2"}' --device cuda
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.results.benchmarks import finish, median_range


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="?", help="folder of the model")
    parser.add_argument("--architecture", type=json.loads, help="JSON, instead of a folder")
    parser.add_argument("--remove", action="append", default=[], help="layers, as in 2,3")
    parser.add_argument("--mimic", action="append", default=[], help="kind:width[:split]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech (default: 5)")
    parser.add_argument("--batch", type=at_least(1), default=1, help="utterances (default: 1)")
    parser.add_argument("--warmup", type=at_least(1), default=5, help="rounds (default: 5)")
    parser.add_argument("--repeats", type=at_least(1), default=20, help="rounds (default: 20)")
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    from espnet_ext.bridge.muted import muted

    with muted():
        measured = measure(args)
    finish(table(measured), measured, args.json)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    header = ["system", "params", "without the front end", "MACs/s", "ms (range)", "to whole"]
    whole = measured["systems"]["whole"]
    return {
        "title": "Time of stacks, whole and mimicked",
        "about": "Random speech; the systems take turns, the first rounds are not counted; "
        "medians. The time after the front end is the median difference to the front end alone in "
        "the same round.",
        "header": [*header, "ms after the front end", "to whole"],
        "rows": [
            [
                name,
                f"{row['parameters']:,}",
                f"{row['stack_parameters']:,}",
                f"{row['macs_per_second'] / 1e6:,.1f} M",
                median_range([1e3 * seconds for seconds in row["rounds"]], 1),
                f"{row['ms'] / whole['ms']:.3f}",
                f"{row['stack_ms']:.2f}",
                f"{row['stack_ms'] / whole['stack_ms']:.3f}",
            ]
            for name, row in measured["systems"].items()
        ],
        "notes": [
            f"{measured['batch']} x {measured['seconds']:g} s, {measured['repeats']} rounds after "
            f"{measured['warmup']}, {measured['threads']} thread; {measured['device']}."
        ],
    }


def systems_of(args: argparse.Namespace) -> dict[str, Any]:
    """The modules to be timed, by name; each takes speech (batch, samples) and lengths.

    Raises:
        UserError: no model, or layers or mimics that do not fit it.
    """
    from torch import nn

    from espnet_ext.encoders.pretrained.load import build_stack, load_stack
    from espnet_ext.encoders.pretrained.mimicked import MimickedStack, parse_mimic

    if (args.path is None) == (args.architecture is None):
        raise UserError("give the folder of a model, or --architecture")
    load = build_stack(args.architecture) if args.path is None else load_stack(args.path)

    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # A mimicked stack without its mimic is the front end alone.
            self.stack = MimickedStack(load, parse_mimic({})).stack

        def forward(self, speech: Any, lengths: Any) -> Any:
            return self.stack.front(speech, lengths)

    found: dict[str, Any] = {"whole": load, "front": Front()}
    for words in args.remove:
        try:
            layers = [int(word) for word in words.split(",")]
        except ValueError:
            raise UserError(f"--remove takes numbers as in 2,3, not {words!r}") from None
        found[f"without {words}"] = load.remove(layers)
    for words in args.mimic:
        kind, *numbers = words.split(":")
        if not 1 <= len(numbers) <= 2 or not all(n.isdecimal() for n in numbers):
            raise UserError(f"--mimic takes kind:width[:split], not {words!r}")
        conf = {"kind": kind, "width": int(numbers[0])}
        conf |= {"split": int(numbers[1])} if len(numbers) == 2 else {}
        found[f"mimic {words}"] = MimickedStack(load, parse_mimic(conf))
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Count and time all systems.

    Raises:
        UserError: what ``systems_of`` raises, or no GPU.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from espnet_ext.bridge.configs.footprint import MORE_FLOPS
    from espnet_ext.encoders.pretrained.mimicked import MimickedStack
    from espnet_ext.methods.deploy import parameter_count

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; --device cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    samples = round(16000 * args.seconds)
    speech = (torch.randn(args.batch, samples) * 0.1).to(args.device)
    lengths = torch.full((args.batch,), samples, device=args.device)
    systems = {n: m.eval().to(args.device) for n, m in systems_of(args).items()}
    rows: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for name, system in systems.items():
            with FlopCounterMode(display=False, custom_mapping=MORE_FLOPS) as counter:
                system(speech, lengths)
            replaced = [] if name == "front" else [system]
            if isinstance(system, MimickedStack):
                replaced = [system.mimic]
            elif replaced:
                replaced = system.body
            macs = counter.get_total_flops() / 2 / args.seconds / args.batch
            rows[name] = {
                "parameters": parameter_count([system]),
                "stack_parameters": parameter_count(replaced),
                "macs_per_second": round(macs),
                "rounds": [],
            }
        for round_ in range(args.warmup + args.repeats):
            for name, system in systems.items():
                seconds = timed(lambda s=system: s(speech, lengths), args.device)  # type: ignore[misc]
                if round_ >= args.warmup:
                    rows[name]["rounds"].append(seconds)
    for row in rows.values():
        row["ms"] = 1e3 * statistics.median(row["rounds"])
        after = [a - b for a, b in zip(row["rounds"], rows["front"]["rounds"], strict=True)]
        row["stack_ms"] = 1e3 * statistics.median(after)
    protocol = ("seconds", "batch", "warmup", "repeats", "threads", "device")
    model = args.path or json.dumps(args.architecture)
    return {"model": model, "systems": rows, **{key: getattr(args, key) for key in protocol}}


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of ``work``: by the clock, on a GPU by CUDA events around it."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


if __name__ == "__main__":
    sys.exit(run_cli("stack_time.py", main))
