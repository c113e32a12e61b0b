"""Stage 4: collect statistics and train with ESPnet's trainer; a killed run continues.

Writes exp/stats_<digest>/ (shared by configs with the same features and tokens) and
exp/<tag>/: ESPnet's config.yaml, checkpoints and train.log, calls.json (each call of train) and
train.json for the report. SIGTERM and SIGUSR1 save the state and stop. Options after ``--`` are
ESPnet's and win over the config. A finished run can get more epochs (a larger --max_epoch); any
other change needs another config.

A training may be spread over the GPUs of a node, over processes of a CPU, and over nodes, each of
which runs the same command; batch_size and batch_bins are those of all processes together.

Statistics of large sets may be collected in parts: job K of N runs --part K/N on a shared disk.

Example:
  espnet-ext train conf/train_hrf_conformer_xs.yaml --ngpu 0 -- --max_epoch 20
  espnet-ext train conf/train_hrf_conformer_xs.yaml --ngpu 4
  srun --nodes 2 --ntasks-per-node 1 espnet-ext train conf/train_x.yaml --ngpu 4 --num_nodes 2
"""

import argparse
import os

from espnet_ext.config.processes import find_processes
from espnet_ext.data.parts import part
from espnet_ext.errors import UserError, at_least
from espnet_ext.experiment import Experiment
from espnet_ext.stages.train import TrainOptions, collect_part, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument(
        "--ngpu",
        type=at_least(0),
        default=0,
        help="GPUs of a node, each with a process; 0: the CPU",
    )
    parser.add_argument(
        "--processes", type=at_least(1), default=1, help="processes of a node without GPUs"
    )
    parser.add_argument("--num_nodes", type=at_least(1), default=1, help="nodes")
    parser.add_argument(
        "--master", metavar="HOST[:PORT]", help="node 0; default: Slurm's first, or MASTER_ADDR"
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        help="CPU threads of a process without a GPU; default: OMP_NUM_THREADS, else up to 4, "
        "but no more than there are cores for all processes",
    )
    parser.add_argument(
        "--part",
        type=part,
        metavar="K/N",
        help="only the statistics of the Kth of N parts of the data; a call without it joins them",
    )
    parser.set_defaults(espnet=[])  # what follows --
    parser.usage = (
        "%(prog)s [-h] [--tag TAG] [--ngpu N] [--processes N] [--num_nodes N] [--master HOST]\n"
        "                        [--threads N] [--part K/N] config [-- OPTIONS]"
    )


def _threads(processes: int) -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return max(1, min(4, len(os.sched_getaffinity(0)) // processes))


def run(args: argparse.Namespace) -> None:
    """Train, or continue a training."""
    if args.ngpu and args.processes > 1:
        raise UserError("give --ngpu N or --processes N: with GPUs each one has a process")
    processes = find_processes(args.ngpu or args.processes, args.num_nodes, args.master)
    threads = args.threads or _threads(processes.per_node)
    options = TrainOptions(args.ngpu, threads, processes, tuple(args.espnet))
    experiment = Experiment.load(args.config, args.tag)
    if args.part is not None:
        if not processes.alone:
            raise UserError("--part is for one process: leave out --ngpu, --processes, --num_nodes")
        collect_part(experiment, options, args.part)
    else:
        train(experiment, options)
