"""Remove layers from a stack without retraining: curves of its score, and the smaller model.

With CONFIG, a probe (recipe: {task: cls}) or a recogniser with encoder: stack that stages 4 and 5
have made: layers are removed one by one in each order (backward, forward, block influence by cosine
and by nearest neighbours, as measured on --score_set), and the smaller model, its decoder
unchanged, is scored on --set. With --part decoder a recogniser's decoder loses layers, and its
encoder stays. Writes exp/pruning/<name>.json and a plot. With --model, writes the
model without some layers in the format of its family; transformers or stock ESPnet loads it without
this package.

Example:
  espnet-ext prune conf/train_whisper_tiny_s.yaml --score_set dev --set test --repeats 5
  espnet-ext prune conf/train_whisper_tiny_m.yaml --score_set dev --set test --repeats 1
  espnet-ext prune conf/train_whisper_tiny_m.yaml --part decoder --set test --repeats 1
  espnet-ext prune --model exp/whisper_base --remove 3 4 --out exp/whisper_base_4
"""

import argparse
from pathlib import Path

from espnet_ext.analysis.measure import ORDERS, PARTS, Removal
from espnet_ext.cli.options import add_measure, add_publishing, measure, publish_if_asked
from espnet_ext.errors import UserError, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", nargs="?", help="training config of a probe or recogniser")
    parser.add_argument(
        "--tags", nargs="+", help="probes that differ in the seed; default: the config's"
    )
    parser.add_argument("--variant", help="variant of the model; default: recipe: variant")
    parser.add_argument("--part", choices=PARTS, default="encoder", help="part of a recogniser")
    parser.add_argument(
        "--orders", nargs="+", choices=ORDERS, default=list(ORDERS), help="of removal; default: all"
    )
    parser.add_argument("--score_set", default="dev", help="set that layers are scored on")
    parser.add_argument("--set", default="test", help="set that the probe is scored on")
    parser.add_argument(
        "--metric",
        choices=("accuracy", "weighted_f1", "wer"),
        help="default: wer of a recogniser, else accuracy",
    )
    parser.add_argument("--repeats", type=at_least(1), default=5, help="draws of batches")
    parser.add_argument(
        "--protect", type=at_least(0), nargs="*", default=[], help="layers that stay"
    )
    parser.add_argument("--name", help="of the result; default: from the tag and the set")
    add_measure(parser)
    add_publishing(parser)
    model = parser.add_argument_group("write a smaller model instead")
    model.add_argument("--model", help="folder of a model, exp/<tag>, or hub:NAME")
    model.add_argument("--remove", type=int, nargs="+", metavar="LAYER", help="counted from 0")
    model.add_argument("--out", metavar="DIR", type=Path, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Draw the curves of a probe, or write a model without some layers.

    Raises:
        UserError: options that do not go together, a layer that cannot be removed, a probe that is
            not deployed, or a set that does not suit.
    """
    if args.config is not None:
        if args.model or args.remove or args.out:
            raise UserError("--model, --remove and --out write a model: leave out CONFIG, or these")
        _curves(args)
        return
    for option in ("model", "remove", "out"):
        if getattr(args, option) is None:
            raise UserError(f"give a CONFIG, or --model, --remove and --out (no --{option})")
    from espnet_ext.stages.stacks import save_without

    print(f"prune: {save_without(args.model, args.remove, args.out)}")


def _curves(args: argparse.Namespace) -> None:
    from espnet_ext.experiment import Experiment
    from espnet_ext.results.pages.stacks import notes, stack_table
    from espnet_ext.results.pages.text import print_table
    from espnet_ext.stages.stacks import audio_of_set, pruning_curves, write

    experiment = Experiment.load(args.config, variant=args.variant)
    if args.score_set == args.set:
        raise UserError(f"--score_set and --set are both {args.set}; use different sets")
    how = measure(args, args.score_set, len(audio_of_set(args.score_set)))
    metric = args.metric or ("wer" if experiment.recipe.task == "asr" else "accuracy")
    removal = Removal(args.orders, metric, args.repeats, args.protect, args.part)
    sets = (args.score_set, args.set)
    record = pruning_curves(experiment, args.tags or (), sets, how, removal, args.name)
    written = write(record)
    print_table(*stack_table(record))
    print("\n".join([*notes(record), f"wrote {' and '.join(map(str, written))}"]))
    publish_if_asked(args, f"pruning {record.name}", record)
