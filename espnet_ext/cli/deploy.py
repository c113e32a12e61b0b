"""Stage 5: deploy the averaged model as a variant (merged, ...), verified.

Writes exp/<tag>/deploy/<variant>/{model.pth,config.yaml,feats_stats.npz,deploy.json}, which
stock ESPnet loads. Fails and writes nothing if its output on real speech differs from that
of the training model by more than 1e-5, or if a key or shape differs from stock ESPnet's.

A member of a nested family at fewer than 32 bits is packed: model.safetensors, which needs this
package to load, instead of model.pth. So is a variant that is rounded after training, merged+4b
(blocks of the encoder) or whole+4b (every matrix).
With --family all members are written into one file, exp/<tag>/deploy/family/family.safetensors,
with family.json that lists them; load one by
espnet_ext.bridge.deployed.family.load(FILE, depth=, width=, bits=, max_bytes=).

Example:
  espnet-ext deploy conf/train_hrf_conformer_xs.yaml --variant merged
  espnet-ext deploy conf/nested/train_nested_conformer_xs.yaml --variant 6L-384-4b
  espnet-ext deploy conf/nested/train_nested_conformer_xs.yaml --family
"""

import argparse
from pathlib import Path

from espnet_ext.cli.options import add_variant, chosen_variants
from espnet_ext.errors import UserError
from espnet_ext.experiment import FAMILY
from espnet_ext.stages.deploy import deploy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    add_variant(parser)
    parser.add_argument("--family", action="store_true", help="all members, in one file")
    parser.add_argument("--checkpoint", type=Path, help="to deploy (default: the averaged model)")


def run(args: argparse.Namespace) -> None:
    """Deploy one variant, or all variants of the config, or a family."""
    if args.family and args.variant:
        raise UserError("--family holds all variants: leave --variant out")
    args.variant = FAMILY if args.family else args.variant
    for experiment in chosen_variants(args):
        deploy(experiment, args.checkpoint)
