"""CTC recognisers and classifiers as graphs, traced by torch.

    preprocess   audio (1, n) -> x (1, frames, features)
    model        x (N, frames, features), x_lens (N,) -> log_probs, log_probs_len (N,)

``log_probs`` are (N, frames, V) of CTC, which is sherpa-onnx's contract ``from_zipformer_ctc``, and
(N, classes) of a classifier. Statistics of the normalisation are inside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.footprint import is_classifier
from espnet_ext.errors import UserError
from espnet_ext.export.graph import Products
from espnet_ext.export.rounded import use_integers
from espnet_ext.export.tracing import trace, trace_features, traceable

MODEL = "model.onnx"
_FRAMES = 150  # of the input that is traced


class Frames(nn.Module):
    """Normalisation, encoder and output of a model on features."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr, self.classifies = asr, is_classifier(asr)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities, and their number of frames."""
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), x_lens)
        encoded, lengths, _ = self.asr.encoder(x, x_lens)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        if self.classifies:
            return self.asr.decoder(encoded, lengths).log_softmax(-1), lengths
        return self.asr.ctc.log_softmax(encoded), lengths


def write(
    decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
) -> dict[int, int]:
    """Write the two graphs; return how many weights are stored in how many bits.

    Args:
        decoder: the model; its layers are replaced by rounded ones.
        state: of its packed file; empty for a model at 32 bits.
        folder: that exists.
        products: see ``graph.Graph``.

    Raises:
        UserError: no CTC and no classes, features that the graph cannot compute, or an encoder
            that cannot be traced.
    """
    asr = decoder.model
    if asr.frontend is not None or decoder.width is None:
        raise UserError("only models of log-mel can be exported")
    counted = use_integers(asr, state, products)
    trace_features(decoder, folder)
    x, lengths = torch.zeros(2, _FRAMES, decoder.width), torch.tensor([_FRAMES, _FRAMES - 9])
    inputs = {"x": {0: "N", 1: "frames"}, "x_lens": {0: "N"}}
    outputs = {"log_probs": {0: "N"}, "log_probs_len": {0: "N"}}
    if not is_classifier(asr):
        outputs["log_probs"][1] = "out_frames"
    with traceable(asr):
        trace(Frames(asr).eval(), (x, lengths), folder / MODEL, inputs, outputs)
    return dict(counted)
