"""Write a deployed model as ONNX graphs that sherpa-onnx and ONNX Runtime run.

For Whisper, CTC and attention recognisers, streaming transducers and classifiers: plain, merged,
shared, pruned, mimicked, or a member of a family. A packed model keeps its integers: 4 bits stay 4
bits. Of a model at 32 bits --bits 8 or 4 rounds the matrices. The folder holds graphs (of
sherpa-onnx's from_moonshine, from_zipformer_ctc, or from_transducer for streams), tokens.txt,
model.json and transcribe.py, which needs numpy, onnxruntime and soundfile alone.

--family writes one folder for several members of a family: the weights of all, each once, and small
graphs for each. MODEL is then a family file, the folder of its variants (exp/<tag>/deploy), or a
config; names after --family choose members. Weights of fewer bits are computed from those of more
when a member is loaded.

Nothing is written unless the graphs give torch's scores and texts on speech: that of --verify, or
of a config the first utterances of its development set.

Needs the packages of the extra "export": pip install 'espnet-ext[export]'.

Example:
  espnet-ext export conf/train_nested_whisper_tiny_m.yaml --out exp/onnx
  espnet-ext export exp/whisper_tiny_m/deploy/merged --bits 8 --verify a.wav b.wav --out exp/onnx8
  espnet-ext export exp/nested_conformer_xs/deploy/family --family 6L-384-8b 6L-384-4b \\
      --verify a.wav b.wav --out exp/family
  espnet-ext export conf/residual/train_residual_stream_xs_k3.yaml --bits 8 --out exp/stream
"""

import argparse
from pathlib import Path

from espnet_ext.config.training import is_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.stages.export import (
    RUNTIMES,
    development_speech,
    export_model,
    require_packages,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", help="deployed folder or file of weights, or training config")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--variant", help="variant to export, where MODEL is a config")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="(default: onnx)")
    parser.add_argument(
        "--bits", type=int, choices=[32, 8, 4], help="bits of the graphs, of a model at 32 bits"
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="sherpa: products of 8 bits that are exact in every runtime (default); "
        "onnxruntime: faster on x86 with VNNI; on x86 without it a session needs the option "
        "session.x64quantprecision=1, which transcribe.py and espnet-ext set",
    )
    parser.add_argument(
        "--search",
        choices=["ctc", "attention"],
        help="decoder to export if the model has both (default: ctc, which is faster)",
    )
    parser.add_argument("--family", nargs="*", metavar="NAME", help="members (default: all)")
    parser.add_argument("--language", help="fixed language of the speech, if a Whisper detects it")
    parser.add_argument(
        "--layout",
        choices=["from_moonshine", "from_whisper"],
        help="of a Whisper: how sherpa-onnx opens it (default: from_moonshine, which is faster)",
    )
    parser.add_argument("--exact", action="store_true", help="multiply in float32: slower")
    parser.add_argument("--verify", nargs="+", metavar="FILE", help="speech to compare texts on")


def run(args: argparse.Namespace) -> None:
    """Export one model, or members of a family."""
    require_packages()
    if args.exact and args.runtime:
        raise UserError("--exact is for every runtime: leave out --runtime")
    model, speech = _model(args)
    products = "float32" if args.exact else RUNTIMES[args.runtime or "sherpa"]
    chosen = {"bits": args.bits, "search": args.search, "language": args.language}
    chosen["layout"] = args.layout
    said = export_model(model, speech, Path(args.out), products, args.family, **chosen)
    print(f"export: {said}")


def _model(args: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The model and the speech that it is verified on."""
    speech = [Path(path) for path in args.verify or ()]
    if not is_config(args.model):
        if args.variant:
            raise UserError("--variant needs a config; give the deployed folder of the variant")
        if not speech:
            raise UserError("give speech that the graphs are verified on: --verify FILE...")
        return Path(args.model), speech
    experiment = Experiment.load(args.model, None, args.variant)
    if args.family is not None and args.variant:
        raise UserError("--family lists variants: leave out --variant")
    speech = speech or development_speech(experiment)
    if args.family is not None:
        return experiment.deployed.parent, speech
    return experiment.require_deployed(), speech
