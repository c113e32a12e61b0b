"""CTC recognisers and classifiers: see ``traced.frames``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.configs.footprint import is_classifier
from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.data.features import KALDI
from espnet_ext.encoders.pretrained.stack import RATE
from espnet_ext.export.contracts.compare import relative_difference
from espnet_ext.export.contracts.traced import NAMES, TracedContract
from espnet_ext.export.runtime import run_onnx
from espnet_ext.export.traced import frames
from espnet_ext.formats.packed import State


class FramesContract(TracedContract):
    """The contract of a model that scores each frame, or the whole, without a search."""

    def __init__(self, bundle: Bundle, decoder: Decoder, stored: State, bits: int | None):
        """See ``contracts.kinds.contract_of``."""
        unused = () if is_classifier(decoder.model) else ("decoder.",)
        super().__init__(bundle, decoder, stored, bits, unused)

    trace = staticmethod(frames.write)

    def symbols(self) -> dict[int, str]:
        """Pieces of SentencePiece, characters or classes."""
        tokens = self.decoder.model.token_list
        return {place: NAMES.get(token, token) for place, token in enumerate(tokens)}

    def settings(self) -> dict[str, Any]:
        """``kind``, and the contract's name in sherpa-onnx."""
        pretrained = frames.pretrained_of(self.decoder.model)
        most = getattr(pretrained, "most_samples", None)
        limit = {} if most is None else {"most_seconds": most // RATE}
        if is_classifier(self.decoder.model):
            return {"kind": "class"} | limit
        source, name = self.decoder.source, {"sherpa_onnx": "from_zipformer_ctc"}
        # sherpa-onnx computes no others for such a model.
        others = source.deltas or source.definition != KALDI or self.decoder.width is None
        return {"kind": "ctc"} | ({} if others else name) | limit

    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of log-probabilities."""
        return max(
            relative_difference(
                model.log_probs(wave), frames.scores(self.decoder, torch.from_numpy(wave)).numpy()
            )
            for wave in waves
        )
