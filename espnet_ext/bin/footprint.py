"""Print what a config's model weighs and costs, without training it.

Parameters are counted once however often they are used. ``bytes`` is the size of the file
that ``deploy`` writes; MACs are multiply-accumulates of the deployed encoder and CTC output on
10 s of audio: matrix products and convolutions, without the frontend. Of a member of a nested
family its encoder's compression is printed as the paper counts it: bits of the blocks.

Example:
  espnet-ext footprint conf/train_hrf_conformer_xs.yaml --json
"""

import argparse
import json
from pathlib import Path

from espnet_ext.bin.tokens import token_dir
from espnet_ext.config import Config, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--variant", help="deployed form; default: recipe: variant")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Build, deploy, measure, print."""
    config = load_config(args.config)
    from espnet_ext.tasks.quiet import quiet

    with quiet():
        from espnet_ext.tasks.checking import refuse_problems
        from espnet_ext.tasks.footprint import measure

        refuse_problems(config)
        found = measure(config, args.variant, vocabulary(config))
    print(json.dumps(found, indent=2) if args.json else table(found))


def vocabulary(config: Config) -> int | None:
    """Size of the token list if stage 3 has made it, else None."""
    path = token_dir(config) / "tokens.txt"
    return len(path.read_text(encoding="utf-8").splitlines()) if Path(path).is_file() else None


def table(found: dict) -> str:
    """The same as text: parameters of both forms by part, then bytes and MACs."""
    lines = [f"{'parameters':16}{'deployed':>14}{'training':>14}"]
    training = found["training_parameters"]
    for part, count in found["parameters"].items():
        lines.append(f"  {part:14}{count:>14,}{training[part]:>14,}")
    macs = found["macs_per_second"]
    cost = f"{macs / 1e6:,.1f} million" if isinstance(macs, int) else macs
    lines.append(f"bytes           {found['bytes']:>14,}")
    lines.append(f"MACs per second of audio: {cost}")
    if "encoder_compression" in found:
        lines.append(f"encoder blocks: {found['encoder_compression']:.2f} times fewer bits")
    return "\n".join(lines)
