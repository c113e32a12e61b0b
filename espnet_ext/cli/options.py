"""Options that several verbs have."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from espnet_ext.analysis.measure import Measure
from espnet_ext.errors import at_least

if TYPE_CHECKING:
    from espnet_ext.experiment import Experiment
    from espnet_ext.results.schema import Record


def add_variant(parser: argparse.ArgumentParser) -> None:
    """The option that ``chosen_variants`` reads."""
    words = "variant of the model; default: the config's recipe: variants, or else variant"
    parser.add_argument("--variant", help=words)


def chosen_variants(args: argparse.Namespace) -> list["Experiment"]:
    """The experiment of ``args.config`` as ``args.variant``; default: as all its variants.

    Raises:
        UserError: what ``Experiment.load`` raises.
    """
    from espnet_ext.experiment import Experiment

    first = Experiment.load(args.config, args.tag, args.variant)
    variants = first.recipe.variants if args.variant is None else None
    return [replace(first, variant=name) for name in variants or [first.variant]]


def set_names(text: str) -> list[str]:
    """A type for argparse: names of data sets, blanks between."""
    if not text.split():
        raise argparse.ArgumentTypeError("it is empty; name sets as in --sets 'test unseen'")
    return text.split()


def add_publishing(parser: argparse.ArgumentParser) -> None:
    """Options of ``publish_if_asked``."""
    parser.add_argument("--publish", action="store_true", help="copy into results/, RESULTS.md")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="publish what no commit describes"
    )


def publish_if_asked(args: argparse.Namespace, name: str, record: "Record") -> None:
    """With --publish, copy a result into results/ of the repository and make its pages again.

    Raises:
        UserError: no commit describes the result, or the recipe is in no repository.
    """
    if args.publish:
        from espnet_ext.results.publish import publish, publishing_root, refuse_uncommitted

        root = publishing_root()
        if not args.allow_dirty:
            refuse_uncommitted(name, record.commit)
        publish(record, root / "results")


def add_measure(parser: argparse.ArgumentParser) -> None:
    """Options of how layers are compared; ``measure`` reads them."""
    parser.add_argument(
        "--k",
        type=at_least(1),
        nargs="+",
        help="nearest neighbours (default: 2, 4 ... 64, those below the utterances of a batch)",
    )
    parser.add_argument("--batch_size", type=at_least(2), default=128, help="utterances of a batch")
    parser.add_argument("--batches", type=at_least(1), default=20, help="batches to draw, at most")
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the drawn batches")
    parser.add_argument(
        "--time",
        choices=("flat", "mean"),
        default="flat",
        help="compare frames in a row, or their mean",
    )
    parser.add_argument("--seconds", type=float, help="cut utterances off after so many")


def measure(args: argparse.Namespace, name: str, utterances: int) -> Measure:
    """How layers are compared on a set of so many utterances.

    Raises:
        UserError: the set is too small for what was asked.
    """
    keys = ("batch_size", "batches", "seed", "time", "seconds")
    asked = Measure(**{key: getattr(args, key) for key in keys})
    return asked.for_set(name, utterances, args.k)
