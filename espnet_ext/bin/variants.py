"""List the forms in which a config's model can be deployed, with parameters and bytes.

Example:
  espnet-ext variants conf/train_hrf_conformer_xs.yaml
"""

import argparse

from espnet_ext.bin.footprint import vocabulary
from espnet_ext.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")


def run(args: argparse.Namespace) -> None:
    """Deploy every variant and print a line for each."""
    config = load_config(args.config)
    from espnet_ext.tasks.quiet import quiet

    lines = []
    with quiet():
        from espnet_ext.methods.deploy import deploy, parameter_count, variants
        from espnet_ext.tasks.build import build_model
        from espnet_ext.tasks.checking import refuse_problems
        from espnet_ext.tasks.members import file_bytes

        refuse_problems(config)
        model = build_model(config, vocabulary(config))
        known = variants(model)
        width = max(12, *(len(name) + 1 for name in known))
        for name in known:
            deployed = deploy(model, name)
            count = parameter_count([deployed])
            default = "  (recipe: variant)" if name == config.recipe.variant else ""
            size = file_bytes(model, deployed, name)
            line = f"{name:{width}}{count:>14,} parameters{size:>14,} bytes{default}"
            lines.append(line)
    print("\n".join(lines))
