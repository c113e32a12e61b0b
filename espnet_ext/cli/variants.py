"""List the variants of a config's model, with their parameters and bytes.

The variants of a nested family are its members: layers, inner units of feed-forward networks, bits.
The last column is the paper's compression: how many times fewer bits the encoder's blocks need.
merged+8b and the like round the weights of the encoder's blocks after training, whole+8b those of
the whole model.

Example:
  espnet-ext variants conf/train_hrf_conformer_xs.yaml
"""

import argparse

from espnet_ext.config.training import load_config
from espnet_ext.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")


def run(args: argparse.Namespace) -> None:
    """Deploy every variant and print a line for each."""
    experiment = Experiment.of(load_config(args.config))
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.configs.footprint import variant_sizes

        sizes = list(variant_sizes(experiment))
    width = max(12, *(len(size.name) + 1 for size in sizes))
    print(f"{'variant':{width}}{'parameters':>14}{'bytes':>14}{'encoder':>10}")
    for name, parameters, size, ratio in sizes:
        compression = "" if ratio is None else f"{ratio:.2f} x"
        line = f"{name:{width}}{parameters:>14,}{size:>14,}{compression:>10}".rstrip()
        print(line + ("  (recipe: variant)" if name == experiment.variant else ""))
