"""Stage 6: decode test sets with the deployed model by ESPnet's inference classes.

The config names the methods, ``recipe: {decode: {ctc_greedy: {}, ctc_att_beam: {...}}}``.
Writes exp/<tag>/decode/<variant>/<method>/<set>/{text,decode.json}; the real-time factor is
measured on 50 utterances of the first set, of all lengths, in one process with one thread.

On a cluster let job K of N run --part K/N on a shared disk. A call without --part joins the parts,
and decodes those that are missing.

--device cuda decodes on a GPU, in one process; the real-time factor is then time on the clock.

Example:
  espnet-ext decode conf/train_hrf_conformer_xs.yaml --sets "test unseen" --nj 2
  espnet-ext decode conf/train_hrf_conformer_xs.yaml --sets "test unseen" --part 3/20
"""

import argparse

from espnet_ext.cli.options import add_variant, chosen_variants, set_names
from espnet_ext.data.parts import part
from espnet_ext.errors import at_least
from espnet_ext.stages.decode import decode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    add_variant(parser)
    parser.add_argument(
        "--sets", type=set_names, default="test", help="data sets, blanks between (default: test)"
    )
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU (default: cpu)")
    parser.add_argument("--part", type=part, help="K/N: only the Kth of N parts of each set")


def run(args: argparse.Namespace) -> None:
    """Decode every set with every method that is not up to date."""
    for experiment in chosen_variants(args):
        decode(experiment, args.sets, args.nj, part=args.part, device=args.device)
