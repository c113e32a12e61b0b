"""How alike the layers of a model are: cosine, linear CKA, mutual nearest neighbours.

MODEL is a folder in transformers' format (wav2vec 2.0, HuBERT, WavLM, Whisper), exp/<tag> of an
encoder trained here, or hub:NAME; or the config of a recogniser that stage 5 has deployed: of its
encoder, or with --part decoder of its decoder while it reads the set's texts. Run in a recipe's
folder, after stage 1. Writes exp/similarity/<name>.json and a heat map for each measure, with the
blocks of layers that it shows. Batches are averaged, so memory depends on the batch and its longest
utterance, not on the set. With --time flat the lengths of utterances dominate
where they differ much; then cut utterances with --seconds, or use --time mean.

Example:
  espnet-ext similarity downloads/whisper_base --set dev
  espnet-ext similarity exp/conformer_xs --set dev --time mean --batch_size 64 --k 2 4 8
  espnet-ext similarity conf/train_whisper_tiny_m.yaml --part decoder --set dev --time mean
"""

import argparse

from espnet_ext.analysis.measure import PARTS
from espnet_ext.cli.options import add_measure, add_publishing, measure, publish_if_asked
from espnet_ext.config.training import is_config
from espnet_ext.errors import UserError, at_least
from espnet_ext.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", help="folder of a model, exp/<tag>, hub:NAME, or a config")
    parser.add_argument("--part", choices=PARTS, default="encoder", help="part of a recogniser")
    parser.add_argument("--variant", help="variant, where MODEL is a config; default: the config's")
    parser.add_argument("--set", default="dev", help="data set (default: dev)")
    parser.add_argument("--name", help="of the result; default: from model and set")
    parser.add_argument("--blocks", type=at_least(2), default=2, help="blocks to look for")
    add_measure(parser)
    add_publishing(parser)


def run(args: argparse.Namespace) -> None:
    """Compare the layers of one model.

    Raises:
        UserError: no such model, part or set, or a k that the set is too small for.
    """
    from espnet_ext.results.pages.stacks import notes, stack_table
    from espnet_ext.results.pages.text import print_table
    from espnet_ext.stages.stacks import audio_of_set, similarity, write

    model: str | Experiment = args.model
    if is_config(args.model):
        model = Experiment.load(args.model, variant=args.variant)
    elif args.variant or args.part != "encoder":
        raise UserError(
            "--variant and --part decoder are of a deployed recogniser: give its config"
        )
    how = measure(args, args.set, len(audio_of_set(args.set)))
    record = similarity(model, args.set, how, args.blocks, args.name, args.part)
    written = write(record)
    print_table(*stack_table(record))
    print("\n".join([*notes(record), f"wrote {' and '.join(map(str, written))}"]))
    publish_if_asked(args, f"similarity {record.name}", record)
