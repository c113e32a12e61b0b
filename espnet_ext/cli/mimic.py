"""Step one of a mimic: a small network learns to imitate pretrained layers, without labels.

The config has ``encoder: stack``, under ``encoder_conf`` the model's path and ``mimic: {kind,
width, first, split}``, and ``recipe: {mimic: {epochs, lr, batch_size, cache_gb}}``. Stage 4 runs
this by itself before step two; alone it is for looking at step one, or for a machine with a GPU.
The teacher's activations are computed once and kept in exp/mimic/activations if they fit into
cache_gb. Writes exp/mimic/<name>/{mimic.safetensors,mimic.json}; a killed run goes on.

Example:
  espnet-ext mimic conf/train_mimic_whisper_tiny_s.yaml
"""

import argparse

from espnet_ext.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--ngpu", type=int, choices=(0, 1), default=0, help="GPUs")


def run(args: argparse.Namespace) -> None:
    """Train step one, unless it is up to date."""
    experiment = Experiment.load(args.config)
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.analysis.mimic_training import train_mimic
    print(f"mimic: {train_mimic(experiment, 'cuda' if args.ngpu else 'cpu')}")
