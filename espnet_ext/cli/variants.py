"""List the forms in which a config's model can be deployed, with parameters and bytes.

The forms of a nested family are its members: layers, inner units of feed-forward networks, bits.
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
        from espnet_ext.bridge.build import build_model
        from espnet_ext.bridge.config_check import refuse_problems
        from espnet_ext.bridge.footprint import encoder_compression
        from espnet_ext.bridge.variants import file_bytes, formed, rounded_afterwards
        from espnet_ext.methods.deploy import parameter_count, variants

        refuse_problems(experiment.config)
        model = build_model(experiment, experiment.vocabulary)
        known = [*variants(model), *rounded_afterwards(model)]
        width = max(12, *(len(name) + 1 for name in known))
        lines = [f"{'variant':{width}}{'parameters':>14}{'bytes':>14}{'encoder':>10}"]
        for name in known:
            form = formed(model, name)
            line = f"{name:{width}}{parameter_count([form.module]):>14,}"
            line += f"{file_bytes(form, name):>14,}"
            ratio = encoder_compression(model, form.module, name).get("encoder_compression")
            line += f"{'' if ratio is None else f'{ratio:.2f} x':>10}"
            default = "  (recipe: variant)" if name == experiment.variant else ""
            lines.append(line.rstrip() + default)
    print("\n".join(lines))
