"""Collect a run into one validated JSON; print it with its baseline; draw plots; publish.

Stage 8. Reads the files that stages 4 to 7 wrote for CONFIG, writes exp/<tag>/result.json and the
plots in exp/<tag>/images/, and prints the run and the baseline that it was compared with.
--publish also copies the result into results/<dataset>_<task>/ and makes RESULTS.md, the pages in
results/ and the README's table again, if the run was trained from a commit (--allow-dirty: from
any tree); --all only makes the pages and their plots again.

Example:
    espnet-ext report conf/train_hrf_conformer_xs.yaml
    espnet-ext report conf/train_hrf_conformer_xs.yaml --publish
    espnet-ext report --all
"""

import argparse
from pathlib import Path

from espnet_ext.cli.options import add_publishing, add_variant, chosen_variants
from espnet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", help="training config, run in the recipe's folder")
    parser.add_argument("--tag", help="name of the experiment (default: from the config's name)")
    add_variant(parser)
    add_publishing(parser)
    parser.add_argument("--all", action="store_true", help="regenerate RESULTS.md and its plots")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="folder of the committed results (default: results/ of the repository); "
        "RESULTS.md is written next to it",
    )


def run(args: argparse.Namespace) -> None:
    """Report one run, or make all pages again.

    Raises:
        UserError: options that do not go together, a stage that has not run, or a result that
            does not fit the schema.
    """
    from espnet_ext.results.pages.text import paragraph, print_table
    from espnet_ext.results.publish import publish, refuse_uncommitted, regenerate
    from espnet_ext.stages.report import report

    folder = _results_folder(args)
    if args.all:
        if args.config or args.publish or args.variant or args.tag:
            raise UserError(
                "--all takes no CONFIG, --tag, --variant or --publish: it reads results/"
            )
        if folder is None:
            raise UserError("no repository here (no folder egs/ above): give --results DIR")
        regenerate(folder)
        return
    if args.config is None:
        raise UserError("give a CONFIG (as in conf/train_*.yaml), or --all")
    if args.publish and folder is None:
        raise UserError("this recipe is in no repository (no folder egs/ above): give --results")
    for experiment in chosen_variants(args):
        made = report(experiment, folder)
        print("\n".join([*made.messages, *map(paragraph, made.lines)]))
        print_table(*made.table)
        if args.publish and folder is not None:
            if not args.allow_dirty:
                refuse_uncommitted(made.result.tag, made.result.commit)
            publish(made.result, folder)


def _results_folder(args: argparse.Namespace) -> Path | None:
    from espnet_ext.results.run import package_root, repository_root

    if args.results is not None:
        return Path(args.results)
    # A recipe that is elsewhere must not publish into the repository of the package.
    root = repository_root(Path.cwd()) or (package_root() if args.all else None)
    return None if root is None else root / "results"
