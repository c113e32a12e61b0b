"""Exported folders: written and verified whole, or not at all."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.decoding.loading import decoder_of
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.config.decoding import CTC_BEAM, TRANSDUCER
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.kinds import Contract, attends, contract_of, is_transducer
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.runtime import run_onnx, run_search
from espnet_ext.export.runtime.decoder import SETTINGS
from espnet_ext.export.runtime.family_weights import COMPUTED
from espnet_ext.export.whisper.source import choose_language
from espnet_ext.files import atomic_path, bytes_in, read_json, write_json
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.digests import digests
from espnet_ext.formats.packed import member_bytes

TOKENS, SCRIPT, EXAMPLE = "tokens.txt", "transcribe.py", "example.py"
_TOLERANCE = 1e-3  # of scores, relative to their largest, by the same integers in float32
LARGER, OVERHEAD = 2, 1 << 20  # of graphs' bytes, to those of a packed file
LEAST_EQUAL = 0.75  # of texts at least, where activations are rounded too; of few, all but one


@dataclass(frozen=True)
class Exported:
    """Sizes of an exported folder, and how it compares with torch.

    Attributes:
        bytes: of all files.
        rounded: how many weights are in how many bits.
        difference: largest, of scores by the same weights in float32, relative to the largest.
        equal, compared: texts that are torch's, of how many.
    """

    bytes: int
    rounded: dict[int, int]
    difference: float
    equal: int
    compared: int


def export(
    bundle: Bundle,
    folder: Path,
    waves: Sequence[np.ndarray],
    bits: int | None = None,
    products: Products = "uint8",
    search: str | None = None,
    language: str | None = None,
    layout: str | None = None,
) -> Exported:
    """Write a deployed model as ONNX graphs for sherpa-onnx and ONNX Runtime.

    The folder appears only if, on ``waves``, graphs that multiply in float32 give torch's scores,
    and those that are written give torch's texts.

    Args:
        bundle: the model.
        folder: that is written; it must not hold anything else.
        waves: speech (samples,) at the model's rate.
        bits: see ``contracts.kinds.contract_of``.
        products: float32, or with 8 bits of activations and of a table of codes, which is faster
            and needs less memory; see ``graphs.graph.Graph``.
        search: of a model of ESPnet that has both, ``ctc`` or ``attention``; None: CTC.
        language: of a Whisper that detects languages: the one that the graphs transcribe.
        layout: see ``contracts.kinds.contract_of``.

    Raises:
        UserError: a model that no contract can hold, a folder of something else, outputs that
            differ, or integers that became floats.
    """
    refuse_other_folder(folder)
    decoder = _greedy(bundle, search)
    if language is not None:
        choose_language(bundle.path, decoder, language)
    contract = contract_of(bundle, decoder, bits, search, layout)
    with tempfile.TemporaryDirectory() as scratch:
        write(contract, decoder.rate, Path(scratch), "float32")
        difference = contract.difference(run_onnx.Model(scratch), waves)
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{bundle.path}: the graphs' scores differ from torch's by {difference:.1e}: nothing "
            "was written; please report this"
        )
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        rounded = write(contract, decoder.rate, temporary, products)
        ours = run_onnx.Model(temporary)
        theirs = [" ".join(found.text.split()) for found in decoder.decode_waves(waves)]
        pairs = zip(waves, theirs, strict=True)
        equal = sum(ours.text(ours.tokens(wave)[0]) == text for wave, text in pairs)
        if len(waves) - equal > max((1 - LEAST_EQUAL) * len(waves), min(1, len(waves) - 1)):
            raise UserError(
                f"{bundle.path}: {len(waves) - equal} of {len(waves)} texts differ from torch's: "
                "nothing was written; try --exact"
            )
        _refuse_floats(bundle, rounded, temporary)
        size = bytes_in(temporary)
    return Exported(size, rounded, difference, equal, len(waves))


def _refuse_floats(bundle: Bundle, rounded: Mapping[int, int], folder: Path) -> None:
    """Raise UserError if integers of a packed model became floats in its graphs.

    Floats would be four to eight times as large. A table of rounded rows may be there twice. The
    model of the features is frozen, and rounded in no packed file.
    """
    stored = bundle.stored()
    if bundle.member or not any(isinstance(one, Quantised) for one in stored.values()):
        return
    graphs = sum(path.stat().st_size for path in folder.glob("*.onnx"))
    # Without Huffman codes, which graphs do not have.
    most = LARGER * len(member_bytes(stored)) + OVERHEAD
    if bundle.source.layers:
        most += sum(path.stat().st_size for path in bundle.features().files)
    if not rounded or graphs > most:
        raise UserError(
            f"{bundle.path}: its integers became floats in graphs of {graphs:,} bytes: nothing was "
            "written; please report this"
        )


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError for a folder that exists and holds something else than an exported model."""
    if not folder.exists():
        return
    try:
        settings = read_json(folder / SETTINGS)
        known = {SETTINGS, "__pycache__", *settings["sha256"]}
        known |= {f"{member}{COMPUTED}" for member in settings.get("members", ())}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} exists and is no exported model: choose another folder"
        ) from None
    if others := {path.name for path in folder.iterdir()} - known:
        other = min(others)
        raise UserError(f"{folder} holds {other}, which no export has: choose another folder")


def _greedy(bundle: Bundle, search: str | None) -> Decoder:
    """The model in torch with the search of the graphs, whatever method its config names first."""
    if attends(bundle, search):
        options = {"beam_size": 1, "ctc_weight": 0.0}
        return Decoder(bundle, CTC_BEAM, options, bundle.source)
    if is_transducer(bundle):
        return decoder_of(bundle, TRANSDUCER[0])
    greedy = 1 if bundle.arguments.get("decoder") == "whisper" else None
    return decoder_of(bundle, beam=greedy)


def copy_module(module: ModuleType, folder: Path) -> None:
    """Copy a module that transcribe.py imports into its folder."""
    source = Path(str(module.__file__))
    shutil.copyfile(source, folder / source.name)


def write(contract: Contract, rate: int, folder: Path, products: Products) -> dict[int, int]:
    """Write graphs, tokens, script and settings into a folder; return the bits of weights."""
    rounded = contract.write(folder, products)
    lines = "".join(f"{text} {number}\n" for number, text in contract.symbols().items())
    (folder / TOKENS).write_text(lines, encoding="utf-8")
    shutil.copyfile(str(run_onnx.__file__), folder / SCRIPT)
    known = contract.settings()
    if known["kind"] in run_onnx.ATTENTION:
        copy_module(run_search, folder)
    if known["kind"] in ("ctc", "class"):
        shutil.copyfile(Path(str(run_onnx.__file__)).with_name("run_frames.py"), folder / EXAMPLE)
    settings = {
        **known,
        "rate": rate,
        "weights_in_bits": {str(bits): count for bits, count in sorted(rounded.items())},
        "sha256": digests(folder),
    }
    write_json(folder / SETTINGS, settings)
    return rounded
