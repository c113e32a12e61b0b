"""A deployed model, or members of a family, written as ONNX graphs and verified on speech."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet_ext.bridge.muted import muted
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

RUNTIMES = {"sherpa": "uint8", "onnxruntime": "int8"}  # their ``export.graphs.products.Products``
_UTTERANCES = 24  # of a config's development set
_SECONDS = 30  # of each that are compared
_PACKAGES = ("onnx", "onnxruntime")


def require_packages() -> None:
    """Raise UserError where the packages of the extra ``export`` are missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"no package {missing[0]}: pip install 'espnet-ext[export]'")


def development_speech(experiment: Experiment) -> list[Path]:
    """The first utterances of a config's development set.

    Raises:
        UserError: stage 1 has not made the set, or it is empty.
    """
    scp = experiment.set_folder(experiment.recipe.dev_set) / "wav.scp"
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage 1, or give --verify FILE...")
    listed = [Path(path) for path in list(read_table(scp).values())[:_UTTERANCES]]
    if not listed:
        raise UserError(f"{scp}: no utterance in it; give --verify FILE...")
    return listed


def export_model(
    model: Path,
    speech: Sequence[Path],
    out: Path,
    products: Any,
    family: Sequence[str] | None = None,
    **chosen: Any,
) -> str:
    """Write the folder of a model; return a line about it.

    Args:
        model: deployed folder or file of weights; of a family the folder of its variants.
        speech: files that graphs and torch are compared on.
        out: folder to write.
        products: ``export.graphs.products.Products``.
        family: names of members, none for all; None: one model.
        chosen: other arguments of ``export.folder.export``.

    Raises:
        UserError: what cannot be exported, or graphs that do not give torch's texts.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of shapes that it need not know
    with muted():
        import torch

        from espnet_ext.bridge.deployed.bundle import bundles, open_bundle
        from espnet_ext.data.audio import filled_up, read_stretch, resampled
        from espnet_ext.export.family import chosen_members, export_family
        from espnet_ext.export.folder import export
    torch.set_num_threads(1)
    members = {} if family is None else chosen_members(bundles(model), family, model)
    bundle = next(iter(members.values())) if members else open_bundle(model)
    rate = bundle.source.rate
    whole = [resampled(*read_stretch(path, path.name), rate) for path in speech]
    waves = [filled_up(wave[: _SECONDS * rate], rate) for wave in whole]
    if members:
        written = export_family(members, out, waves, products=products, **chosen)
        separate = sum(one.bytes for one in written.members.values())
        return (
            f"{out}: {written.bytes:,} bytes for {', '.join(members)}; in separate folders "
            f"{separate:,}; every member finds the same there, to the last bit"
        )
    made = export(bundle, out, waves, products=products, **chosen)
    kinds = ", ".join(f"{count:,} of {bits} bits" for bits, count in sorted(made.rounded.items()))
    return (
        f"{out}: {made.bytes:,} bytes; weights: {kinds or 'all of 32 bits'}; scores "
        f"differ by {made.difference:.1e}; {made.equal} of {made.compared} texts are torch's"
    )
