"""CTC recognisers and classifiers: see ``frames``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.bundle import Bundle
from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.footprint import is_classifier
from espnet_ext.bridge.loading import decoder_of
from espnet_ext.bridge.variants import matrices
from espnet_ext.data.features import KALDI
from espnet_ext.errors import UserError
from espnet_ext.export import frames, run_onnx
from espnet_ext.export.compare import relative_difference
from espnet_ext.export.graph import Products
from espnet_ext.export.rounded import is_rounded, round_weight
from espnet_ext.formats.packed import State

NAMES = {"<blank>": "<blk>", "<space>": "\u2581"}


def rounded_state(
    model: Any, stored: State, bits: int | None, unused: tuple[str, ...] = ()
) -> State:
    """Round the matrices of a model in place, if ``bits`` are given.

    Args:
        model: that is rounded.
        stored: of its packed file; empty for a model at 32 bits.
        bits: 8, 4 or None.
        unused: how the names of weights begin that no graph has.

    Returns:
        The state of its packed file, or the integers that were rounded to.
    """
    found = dict(stored)
    for name, weight in matrices(model).items() if bits else ():
        if is_rounded(model.get_submodule(name.rpartition(".")[0])):
            found[name] = round_weight(weight, int(bits or 0))
    return {name: weight for name, weight in found.items() if not name.startswith(unused)}


class FramesContract:
    """The contract of a model that scores each frame, or the whole, without a search."""

    def __init__(self, bundle: Bundle, decoder: Decoder, stored: State, bits: int | None):
        """See ``contract.contract_of``."""
        self.bundle, self.decoder = bundle, decoder
        unused = () if is_classifier(decoder.model) else ("decoder.",)
        self.stored = rounded_state(decoder.model, stored, bits, unused)

    def write(self, folder: Path, products: Products) -> dict[int, int]:
        """Write the two graphs."""
        another = decoder_of(self.bundle)  # its layers are replaced
        another.model.load_state_dict(self.decoder.model.state_dict())
        try:
            return frames.write(another, self.stored, folder, products)
        except UserError as error:
            raise UserError(f"{self.bundle.path}: {error}") from None

    def symbols(self) -> dict[int, str]:
        """Pieces of SentencePiece, characters or classes."""
        tokens = self.decoder.model.token_list
        return {place: NAMES.get(token, token) for place, token in enumerate(tokens)}

    def settings(self) -> dict[str, Any]:
        """``kind``, and the contract's name in sherpa-onnx."""
        if is_classifier(self.decoder.model):
            return {"kind": "class"}
        source, name = self.decoder.source, {"sherpa_onnx": "from_zipformer_ctc"}
        # sherpa-onnx computes no others for such a model.
        return {"kind": "ctc"} | ({} if source.deltas or source.definition != KALDI else name)

    @torch.no_grad()
    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of log-probabilities."""
        worst = 0.0
        ours = frames.Frames(self.decoder.model).eval()
        for wave in waves:
            given = self.decoder.source.prepared(torch.from_numpy(wave), self.decoder.width)
            wanted, _ = ours(given[None], torch.tensor([len(given)]))
            difference = relative_difference(model.log_probs(wave), wanted[0].numpy())
            worst = max(worst, difference)
        return worst
