"""List the forms in which a config's model can be deployed, with parameters and bytes.

Of a nested family these are its members: layers, inner units of the feed-forward networks, bits;
the last column counts as the paper does, how many times fewer bits the encoder's blocks take.
merged+8b and the like round the weights of the encoder's blocks after training.

Example:
  espnet-ext variants conf/train_hrf_conformer_xs.yaml
"""

import argparse

from espnet_ext.cli.footprint import vocabulary
from espnet_ext.config.training import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")


def run(args: argparse.Namespace) -> None:
    """Deploy every variant and print a line for each."""
    config = load_config(args.config)
    from espnet_ext.bridge.muted import quiet

    lines = []
    with quiet():
        from espnet_ext.bridge.build import build_model
        from espnet_ext.bridge.config_keys import refuse_problems
        from espnet_ext.bridge.footprint import encoder_compression
        from espnet_ext.bridge.variants import file_bytes, formed, rounded_afterwards
        from espnet_ext.methods.deploy import parameter_count, variants

        refuse_problems(config)
        model = build_model(config, vocabulary(config))
        known = [*variants(model), *rounded_afterwards(model)]
        width = max(12, *(len(name) + 1 for name in known))
        for name in known:
            form = formed(model, name)
            count = parameter_count([form.module])
            default = "  (recipe: variant)" if name == config.recipe.variant else ""
            size = file_bytes(form, name)
            line = f"{name:{width}}{count:>14,} parameters{size:>14,} bytes"
            ratio = encoder_compression(model, form.module, name).get("encoder_compression")
            line += "" if ratio is None else f"{ratio:>8.2f} x encoder"
            lines.append(line + default)
    print("\n".join(lines))
