"""Write a deployed model as ONNX graphs that sherpa-onnx and ONNX Runtime run.

For Whisper, CTC and attention recognisers, streaming transducers and classifiers: plain, merged,
shared, pruned, mimicked, or a member of a family. A packed model keeps its integers: 4 bits stay 4
bits. Of a model at 32 bits --bits 8 or 4 rounds the matrices. The folder holds graphs (of
sherpa-onnx's from_moonshine, from_zipformer_ctc, or from_transducer for streams), tokens.txt,
model.json and transcribe.py, which needs numpy, onnxruntime and soundfile alone.

--family writes one folder for several members of a family: the weights of all, each once, and small
graphs for each. MODEL is then a family file, the folder of deployed forms (exp/<tag>/deploy), or a
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
import importlib.util
import os
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

_UTTERANCES = 24  # of a config's development set
_PACKAGES = ("onnx", "onnxruntime")
PRODUCTS = {"sherpa": "uint8", "onnxruntime": "int8"}  # see ``export.products.Products``


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", help="deployed folder or file of weights, or training config")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--variant", help="of a config: the deployed form")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="(default: onnx)")
    parser.add_argument("--bits", type=int, choices=[32, 8, 4], help="of a model at 32 bits")
    parser.add_argument(
        "--runtime",
        choices=PRODUCTS,
        help="sherpa: products of 8 bits that every runtime computes rightly (default); "
        "onnxruntime: faster on x86 with VNNI; on x86 without it a session needs the option "
        "session.x64quantprecision=1, which transcribe.py and espnet-ext set",
    )
    parser.add_argument(
        "--search",
        choices=["ctc", "attention"],
        help="of a model that has both, what is exported (default: ctc, which is faster)",
    )
    parser.add_argument("--family", nargs="*", metavar="NAME", help="members (default: all)")
    parser.add_argument("--language", help="of a Whisper that detects languages: what it hears")
    parser.add_argument(
        "--layout",
        choices=["from_moonshine", "from_whisper"],
        help="of a Whisper: how sherpa-onnx opens it (default: from_moonshine, which is faster)",
    )
    parser.add_argument("--exact", action="store_true", help="multiply in float32: slower")
    parser.add_argument("--verify", nargs="+", metavar="FILE", help="speech to compare texts on")


def run(args: argparse.Namespace) -> None:
    """Export one model."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"no package {missing[0]}: pip install 'espnet-ext[export]'")
    if args.exact and args.runtime:
        raise UserError("--exact is for every runtime: leave out --runtime")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of shapes that it need not know
    from espnet_ext.bridge.muted import muted

    model, paths = _model(args)
    with muted():
        import torch

        from espnet_ext.bridge.bundle import bundles, open_bundle
        from espnet_ext.data.audio import filled_up, read_stretch, resampled
        from espnet_ext.export.family import chosen_members, export_family
        from espnet_ext.export.folder import export
    torch.set_num_threads(1)
    members = {}
    if args.family is not None:
        members = chosen_members(bundles(model), args.family, model)
    bundle = next(iter(members.values())) if members else open_bundle(model)
    rate = bundle.source.rate
    whole = [resampled(*read_stretch(path, path.name), rate) for path in paths]
    waves = [filled_up(wave[: 30 * rate], rate) for wave in whole]
    products: Any = "float32" if args.exact else PRODUCTS[args.runtime or "sherpa"]
    chosen = {"bits": args.bits, "search": args.search, "language": args.language}
    chosen["layout"] = args.layout
    out = Path(args.out)
    if members:
        family: Any = export_family(members, out, waves, products=products, **chosen)
        separate = sum(made.bytes for made in family.members.values())
        print(
            f"export: {args.out}: {family.bytes:,} bytes for {', '.join(members)}; in separate "
            f"folders {separate:,}; every member finds the same there, to the last bit"
        )
        return
    made: Any = export(bundle, out, waves, products=products, **chosen)
    kinds = ", ".join(f"{count:,} of {bits} bits" for bits, count in sorted(made.rounded.items()))
    print(
        f"export: {args.out}: {made.bytes:,} bytes; weights: {kinds or 'all of 32 bits'}; scores "
        f"differ by {made.difference:.1e}; {made.equal} of {made.compared} texts are torch's"
    )


def _model(args: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The model and the speech that it is verified on."""
    paths = [Path(path) for path in args.verify or ()]
    if Path(args.model).suffix not in (".yaml", ".yml"):
        if args.variant:
            raise UserError("--variant is of a config; give the folder of the form itself")
        if not paths:
            raise UserError("give speech that the graphs are verified on: --verify FILE...")
        return Path(args.model), paths
    from espnet_ext.data.kaldi_dir import read_table
    from espnet_ext.data.segments import set_folder

    experiment = Experiment.load(args.model, None, args.variant)
    if args.family is not None and args.variant:
        raise UserError("--family lists names of forms: leave out --variant")
    scp = set_folder(experiment.data, experiment.recipe.dev_set) / "wav.scp"
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage 1, or give --verify FILE...")
    listed = [Path(path) for path in list(read_table(scp).values())[:_UTTERANCES]]
    if not paths and not listed:
        raise UserError(f"{scp}: no utterance in it; give --verify FILE...")
    if args.family is not None:
        return experiment.require_deployed().parent, paths or listed
    return experiment.require_deployed(), paths or listed
