"""Check training configs: every key and value, then by building the model.

Takes files, or folders in which every train_*.yaml is checked. Prints a line for each config
and one for each problem; fails if there is a problem. Keys are checked within a second, without
ESPnet; building a model takes the time that torch and ESPnet need to start.

Example:
  espnet-ext check conf
  espnet-ext check conf --keys
"""

import argparse
import sys
from pathlib import Path

from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import read_config
from espnet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("paths", nargs="*", default=["conf"], help="configs or folders; conf")
    parser.add_argument("--keys", action="store_true", help="check keys only, build no model")


def run(args: argparse.Namespace) -> None:
    """Check all, then fail if one was wrong.

    Raises:
        UserError: no config was found, or one has a problem.
    """
    configs = find_configs(args.paths)
    wrong = {path: found for path in configs if (found := _key_problems(path))}
    for path in configs:
        if path in wrong:
            _report(path, wrong[path])
        elif args.keys:
            print(f"{path}: keys ok")
        else:
            wrong |= {path: found} if (found := _build(path)) else {}
    count = sum(map(len, wrong.values()))
    if count:
        problems = "1 problem" if count == 1 else f"{count} problems"
        raise UserError(f"{problems} in {len(wrong)} of {len(configs)} configs, listed above")


def _key_problems(path: Path) -> list[str]:
    """Problems that are found without building the model."""
    from espnet_ext.bridge.signatures import cached_signatures

    try:
        config, wrong = read_config(path)
    except UserError as error:
        return [str(error).removeprefix(f"{path.resolve()}: ").removeprefix(f"{path}: ")]
    return [*wrong, *cached_signatures().problems(config), *recipe_problems(config)]


def _build(path: Path) -> list[str]:
    """Build the model and print a line about it; return its problems."""
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.config_check import examine_file

        found = examine_file(path)
    for warning in found.warnings:
        print(f"{path}: warning: {warning}")
    _report(path, found.problems)
    if not found.problems:
        forms = ", ".join(found.variants)
        print(f"{path}: ok, {found.parameters:,} parameters in training; variants: {forms}")
    return found.problems


def _report(path: Path, problems: list[str]) -> None:
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)


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
