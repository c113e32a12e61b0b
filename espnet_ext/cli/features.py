"""Stage 2: write features as Kaldi arks, if the config trains on them, or get its pretrained model.

With ``recipe: {features: raw}`` the frontend computes features while training and there is
nothing to do here. With ``features: ark`` every data directory under data/ gets
dump/<features>/<set>/{feats.scp,utt2num_frames,*.ark}; with --sets those of the config, data/all
and the named ones. A set whose utterances are all in data/all gets a list into the arks of that
set. With ``recipe: {fetch: whisper_base}`` the pretrained model is put where encoder_conf: path
says.

``frontend: kaldi_fbank`` is log-mel (dump/fbank<bins>[_nemo][_d<differences>]).
``frontend: ssl`` with ``frontend_conf: {folder: DIR, layer: N}`` is the output of block N of the
wav2vec 2.0, HuBERT or WavLM model in DIR (transformers' format, safetensors), 50 frames a second
(dump/ssl_<folder>_l<N>).

On a cluster let job K of N run --part K/N on a shared disk. A call without --part joins the parts,
and writes those that are missing.

Example:
  espnet-ext features conf/train_hrf_conformer_xs.yaml --nj 2
  espnet-ext features conf/train_hrf_conformer_xs.yaml --sets "test unseen"
  espnet-ext features conf/train_hrf_conformer_xs.yaml --part 3/20
"""

import argparse

from espnet_ext.cli.options import set_names
from espnet_ext.data.parts import part
from espnet_ext.errors import at_least
from espnet_ext.experiment import Experiment
from espnet_ext.stages.features import write_features


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument(
        "--sets",
        type=set_names,
        metavar="SETS",
        help="sets, blanks between, that get arks in addition to the config's; default: all sets",
    )
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes")
    parser.add_argument("--part", type=part, help="K/N: only the Kth of N parts of the arks")


def run(args: argparse.Namespace) -> None:
    """Write the features."""
    write_features(Experiment.load(args.config), args.nj, args.part, args.sets)
