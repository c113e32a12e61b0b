"""Write a data set with a model's transcripts of speech that has none, to train a smaller one.

MODEL is as for "espnet-ext transcribe": a deployed or exported folder, a file of weights, or a
training config in its recipe's folder. AUDIO are files, or folders of files, of any rate and
format; long recordings are cut at pauses. Texts that the model is unsure of are left out: those
whose tokens have a mean probability below --least.

Writes the data directory OUT, with the utterances of --more before the new ones, and the audio into
audio/OUT next to it; each recording counts as a speaker. Train on it with
recipe: {train_set: NAME}. What was recognised is kept in .<OUT>.jsonl: a call that was killed goes
on, and another --least takes seconds.

Example:
  espnet-ext label exp/nested_whisper_tiny_m/deploy/4L-1536-32b recordings/ --out data/labelled
  espnet-ext label MODEL data/steel_sky --more data/train --out data/train_more --least 0.7
"""

import argparse
import hashlib
from pathlib import Path

from espnet_ext.cli.model import add_model, model_folder, open_recogniser
from espnet_ext.data.kaldi_dir import check_id
from espnet_ext.errors import UserError, at_least
from espnet_ext.export.runtime.family_weights import COMPUTED
from espnet_ext.files import in_use, quick_key
from espnet_ext.run_files import CARD_FILES
from espnet_ext.stages.label import Labelling, audio_files, label, refuse_lost


def probability(word: str) -> float:
    """Type for argparse: a number from 0 to 1."""
    try:
        found = float(word)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to 1, not {word!r}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_model(parser)
    parser.add_argument("audio", nargs="+", help="audio files, or folders of them")
    parser.add_argument("--out", required=True, help="data directory to write")
    parser.add_argument("--more", metavar="DIR", help="data directory to include")
    parser.add_argument(
        "--least", type=probability, default=0.6, help="confidence of a text (default: 0.6)"
    )
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes that convert audio")


def run(args: argparse.Namespace) -> None:
    """Write the data set, unless another call writes it."""
    out, model = Path(args.out), model_folder(args.model, args.variant)
    check_id(out.name, "--out")
    if args.more is not None and not Path(args.more).is_dir():
        raise UserError(f"--more {args.more}: no such data directory")
    more = None if args.more is None else Path(args.more)
    task = Labelling(audio_files(args.audio), out, more, args.least, args.nj)
    refuse_lost(task, args.audio)
    out.parent.mkdir(parents=True, exist_ok=True)
    with in_use(out.parent):
        label(task, open_recogniser(args, model), model_key(args, model))


def model_key(args: argparse.Namespace, model: Path) -> str:
    """Says which model and search it is, whatever stage 8 or a run of the model wrote since."""
    # The config is next to a file of weights.
    inner = model.rglob("*") if model.is_dir() else model.parent.iterdir()
    files = sorted(path for path in inner if path.is_file() and not _is_made_later(path))
    search = [str(args.method), str(args.variant), *([] if args.beam is None else [f"{args.beam}"])]
    words = [*search, model.name, *map(quick_key, files)]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _is_made_later(path: Path) -> bool:
    """True of what stage 8 or a run of the model writes into its folder."""
    return (
        path.name in CARD_FILES or path.parent.name == "__pycache__" or path.name.endswith(COMPUTED)
    )
