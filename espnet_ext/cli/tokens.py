"""Stage 3: make the token list: characters, SentencePiece (BPE or unigram), or classes.

Reads the transcripts (of task st the translations), or labels, of the training set only. Writes
data/token_list/<kind>/tokens.txt, and bpe.model for SentencePiece.

Example:
  espnet-ext tokens conf/train_hrf_conformer_xs.yaml
"""

import argparse

from espnet_ext.experiment import Experiment
from espnet_ext.stages.tokens import write_tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")


def run(args: argparse.Namespace) -> None:
    """Train the tokenizer and write the token list."""
    write_tokens(Experiment.load(args.config))
