"""Stage 4: collect statistics and train with ESPnet's trainer; a killed run continues.

Writes exp/stats_<digest>/ (shared by configs with the same features and tokens) and
exp/<tag>/: ESPnet's config.yaml, checkpoints and train.log, calls.json (each call of train) and
train.json for the report. Options after ``--`` are ESPnet's and win over the config. A finished run
can get more epochs (a larger --max_epoch); any other change needs another config.

Example:
  espnet-ext train conf/train_hrf_conformer_xs.yaml --ngpu 0 -- --max_epoch 20
"""

import argparse
import os

from espnet_ext.errors import at_least
from espnet_ext.experiment import Experiment
from espnet_ext.stages.train import TrainOptions, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument("--ngpu", type=int, choices=(0, 1), default=0, help="GPUs, 0 or 1")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=_threads(),
        help="CPU threads when there is no GPU; default: OMP_NUM_THREADS, else up to 4",
    )
    parser.set_defaults(espnet=[])  # what follows --
    parser.usage = "%(prog)s [-h] [--tag TAG] [--ngpu N] [--threads N] config [-- OPTIONS]"


def _threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return min(4, len(os.sched_getaffinity(0)))


def run(args: argparse.Namespace) -> None:
    """Train, or continue a training."""
    options = TrainOptions(args.ngpu, args.threads, tuple(args.espnet))
    train(Experiment.load(args.config, args.tag), options)
