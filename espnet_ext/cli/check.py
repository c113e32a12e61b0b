"""Check training configs: every key against what takes it, then build the model.

Takes files, or folders in which every train_*.yaml is checked. Prints a line for each config
and one for each problem; fails if there is a problem.

Example:
  espnet-ext check conf
"""

import argparse
import sys
from pathlib import Path

from espnet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("paths", nargs="*", default=["conf"], help="configs or folders; conf")


def run(args: argparse.Namespace) -> None:
    """Check all, then fail if one was wrong.

    Raises:
        UserError: no config was found, or one has a problem.
    """
    configs = list(find_configs(args.paths))
    from espnet_ext.bridge.muted import quiet

    with quiet():
        from espnet_ext.bridge.config_keys import examine_file
    problems = wrong = 0
    for path in configs:
        with quiet():
            found = examine_file(path)
        for warning in found.warnings:
            print(f"{path}: warning: {warning}")
        for problem in found.problems:
            print(f"{path}: {problem}", file=sys.stderr)
        problems += len(found.problems)
        wrong += bool(found.problems)
        if not found.problems:
            forms = ", ".join(found.variants)
            print(f"{path}: ok, {found.parameters:,} parameters in training; variants: {forms}")
    if problems:
        count = "1 problem" if problems == 1 else f"{problems} problems"
        raise UserError(f"{count} in {wrong} of {len(configs)} configs, told above")


def find_configs(paths: list[str]) -> list[Path]:
    """Return the configs that ``paths`` name, each once, folders searched to any depth.

    Raises:
        UserError: a folder holds no train_*.yaml.
    """
    found: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        inside = sorted(path.rglob("train_*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"no train_*.yaml under {path}/; give configs or folders")
        found.update(dict.fromkeys(inside))
    return list(found)
