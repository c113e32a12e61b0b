"""Print what a config's model weighs and costs, without training it.

Parameters are counted once however often they are used. ``bytes`` is the size of the file
that ``deploy`` writes; MACs are multiply-accumulates of the deployed encoder and CTC output on
10 s of audio: matrix products and convolutions, without the frontend. Of a member of a nested
family its encoder's compression is printed as the paper counts it: bits of the blocks.

Example:
  espnet-ext footprint conf/train_hrf_conformer_xs.yaml --json
  espnet-ext footprint conf/train_residual_conformer_xs.yaml --set encoder_conf.residual.rank=2
  espnet-ext footprint conf/paper/train_stream_paper.yaml --vocabulary 11109
"""

import argparse
import json
import sys

from espnet_ext.config.training import changed, load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

_LEAST = 3  # tokens of any list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--variant", help="variant of the model; default: recipe: variant")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of one of ESPnet's options; may be repeated",
    )
    parser.add_argument(
        "--vocabulary", type=int, metavar="N", help="tokens; default: those of stage 3's list"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Build, deploy, measure, print."""
    if args.vocabulary is not None and args.vocabulary < _LEAST:
        raise UserError(f"--vocabulary {args.vocabulary}: blank, unknown and sos/eos are {_LEAST}")
    config = changed(load_config(args.config), args.set)
    experiment = Experiment.of(config, args.variant)
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.build import token_count
        from espnet_ext.bridge.configs.check import refuse_problems
        from espnet_ext.bridge.configs.footprint import measure

        refuse_problems(config)
        known = experiment.vocabulary if args.vocabulary is None else args.vocabulary
        tokens = token_count(experiment) if known is None else known
        found = measure(experiment, tokens)
    if known is None:
        print(f"no token list yet: {tokens} tokens assumed; see --vocabulary", file=sys.stderr)
    print(json.dumps(found, indent=2) if args.json else table(found))


def table(found: dict) -> str:
    """The same as text: parameters deployed and in training by part, then bytes and MACs."""
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
