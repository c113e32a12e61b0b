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
from espnet_ext.config.training import Config, readable_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

# Folders of files that are no training configs.
_OTHERS = {
    "include": "a fragment for include:; the configs that have it are checked",
    "grids": "a grid; espnet-ext grid checks it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("paths", nargs="*", default=["conf"], help="configs or folders; conf")
    parser.add_argument("--keys", action="store_true", help="check keys only, build no model")


def run(args: argparse.Namespace) -> None:
    """Check all, then fail if one was wrong.

    Raises:
        UserError: no config was found, or one has a problem.
    """
    configs = _without_others(find_configs(args.paths))
    read = {path: _read(path) for path in configs}
    wrong = {path: problems for path, (_, problems) in read.items() if problems}
    for path, (config, problems) in read.items():
        if config is None or problems:
            _report(path, problems)
        elif args.keys:
            print(f"{path}: keys ok")
        else:
            wrong |= {path: found} if (found := _build(path, config)) else {}
    count = sum(map(len, wrong.values()))
    if count:
        many = "1 problem" if count == 1 else f"{count} problems"
        raise UserError(f"{many} in {len(wrong)} of {len(configs)} configs, listed above")


def _without_others(paths: list[Path]) -> list[Path]:
    """Leave out existing files that are no training configs, and say so.

    Raises:
        UserError: there is nothing else.
    """
    left = []
    for path in paths:
        kind = _OTHERS.get(path.resolve().parent.name) if path.is_file() else None
        if kind is None:
            left.append(path)
        else:
            print(f"{path}: skipped: {kind}")
    if not left:
        raise UserError("no training config among these; give conf/train_NAME.yaml, or a folder")
    return left


def _read(path: Path) -> tuple[Config | None, list[str]]:
    """A config, if it can be read, and the problems that are found without building its model."""
    from espnet_ext.bridge.configs.signatures import cached_signatures

    config, wrong = readable_config(path)
    if config is None:
        return None, wrong
    return config, [*wrong, *cached_signatures().problems(config), *recipe_problems(config)]


def _build(path: Path, config: Config) -> list[str]:
    """Build the model and print a line about it; return its problems."""
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.configs.check import examine

        found = examine(Experiment.of(config))
    for warning in found.warnings:
        print(f"{path}: warning: {warning}")
    _report(path, found.problems)
    if not found.problems:
        variants = ", ".join(found.variants)
        print(f"{path}: ok, {found.parameters:,} parameters in training; variants: {variants}")
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
