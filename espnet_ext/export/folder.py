"""Exported folders: written and verified whole, or not at all."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from espnet_ext.bridge.bundle import Bundle
from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.loading import decoder_of
from espnet_ext.errors import UserError
from espnet_ext.export import run_onnx, whisper
from espnet_ext.export.onnx_decoder import SETTINGS
from espnet_ext.export.source import read_whisper, symbols
from espnet_ext.files import atomic_path, sha256_file, write_json
from espnet_ext.models.whisper_decoder import MORE_TOKENS

TOKENS, SCRIPT = "tokens.txt", "transcribe.py"
_TOLERANCE = 1e-3  # of scores, relative to their largest, by the same integers in float32
_STEPS = 12  # of the search that scores are compared in
_EQUAL = 0.9  # of texts at least, where activations are rounded too


@dataclass(frozen=True)
class Exported:
    """What was written and compared.

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
    exact: bool = False,
) -> Exported:
    """Write a deployed Whisper as ONNX graphs for sherpa-onnx and ONNX Runtime.

    The folder appears only if, on ``waves``, graphs that multiply in float32 give torch's scores,
    and those that are written give torch's texts.

    Args:
        bundle: the model.
        folder: that is written; it must not hold anything else.
        waves: speech (samples,) at the model's rate.
        bits: see ``source.read_whisper``.
        exact: multiply in float32; else activations and the table's products are rounded to 8
            bits, which is faster and needs less memory.

    Raises:
        UserError: a model that the contract cannot hold, a folder of something else, or outputs
            that differ.
    """
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} exists and is no exported model: choose another folder")
    decoder = decoder_of(bundle)
    model = read_whisper(bundle, decoder, bits)
    with tempfile.TemporaryDirectory() as scratch:
        _write(model, decoder, Path(scratch), exact=True)
        difference = _difference(Path(scratch), model, decoder, waves)
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{bundle.path}: the graphs' scores differ from torch's by {difference:.1e}: nothing "
            "was written; please report this"
        )
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        rounded = _write(model, decoder, temporary, exact)
        equal = _equal_texts(temporary, decoder, waves)
        if equal < _EQUAL * len(waves):
            raise UserError(
                f"{bundle.path}: {len(waves) - equal} of {len(waves)} texts differ from torch's: "
                "nothing was written; try --exact"
            )
        size = sum(path.stat().st_size for path in temporary.iterdir())
    return Exported(size, rounded, difference, equal, len(waves))


def _write(model: whisper.Whisper, decoder: Decoder, folder: Path, exact: bool) -> dict[int, int]:
    """Write graphs, tokens, settings and the script into a folder; return the bits of weights."""
    rounded = whisper.write(model, folder, exact)
    named = {whisper.UNKNOWN: "<unk>", whisper.START: "<s>", whisper.END: "</s>"}
    texts = symbols(decoder.model.token_list, model.rows)
    named |= {whisper.TEXT + place: text for place, text in enumerate(texts)}
    lines = "".join(f"{text} {number}\n" for number, text in named.items())
    (folder / TOKENS).write_text(lines, encoding="utf-8")
    shutil.copyfile(str(run_onnx.__file__), folder / SCRIPT)
    room = decoder.model.decoder.decoder.max_target_positions - len(model.prompt)
    settings = {
        "kind": "whisper",
        "runtime": "sherpa-onnx from_moonshine, ONNX Runtime",
        "rate": decoder.rate,
        "tokens_per_second": decoder.tokens_per_second,
        "more_tokens": MORE_TOKENS,
        "most_tokens": room,
        "weights_in_bits": {str(bits): count for bits, count in sorted(rounded.items())},
        "sha256": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / SETTINGS, settings)
    return rounded


@torch.no_grad()
def _difference(
    folder: Path, model: whisper.Whisper, decoder: Decoder, waves: Sequence[np.ndarray]
) -> float:
    """The largest difference of scores along torch's texts, relative to the largest score."""
    ours, asr = run_onnx.Model(folder), decoder.model
    ids = [run_onnx.END, *range(run_onnx.TEXT, run_onnx.TEXT + len(model.rows))]
    chosen = torch.tensor([model.end, *model.rows])
    worst = 0.0
    for wave in waves:
        encoded, frames = asr.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        inside = torch.ones(1, int(frames), dtype=torch.bool)
        step, token, past = ours.scores(ours.encode(wave)), run_onnx.PROMPT, None
        tokens = asr.decoder.prompts(encoded, inside)
        for _ in range(_STEPS):
            wanted, past = asr.decoder.step(tokens, encoded, None, past)
            theirs = wanted[0, chosen].numpy()
            found = step(token)[ids]
            worst = max(worst, float(np.abs(found - theirs).max() / np.abs(theirs).max()))
            best = int(theirs.argmax())
            token, tokens = ids[best], chosen[best].view(1, 1)
            if token == run_onnx.END:
                break
    return worst


def _equal_texts(folder: Path, decoder: Decoder, waves: Sequence[np.ndarray]) -> int:
    """How many texts of the written graphs are torch's."""
    ours = run_onnx.Model(folder)
    theirs = [found.text for found in decoder.decode_waves(waves)]
    return sum(
        ours.text(ours.tokens(wave)[0]) == text for wave, text in zip(waves, theirs, strict=True)
    )
