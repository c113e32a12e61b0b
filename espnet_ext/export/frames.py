"""CTC recognisers and classifiers as graphs, traced by torch.

    preprocess   audio (1, n) -> x (1, frames, features)
    model        x (N, frames, features), x_lens (N,) -> log_probs, log_probs_len (N,)

``log_probs`` are (N, frames, V) of CTC, which is sherpa-onnx's contract ``from_zipformer_ctc``, and
(N, classes) of a classifier. Statistics of the normalisation are inside. Features are the model's
log-mel: of a Whisper's encoder (``encoder: stack``) transformers' definition of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.footprint import is_classifier
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.errors import UserError
from espnet_ext.export.graph import Products
from espnet_ext.export.rounded import use_integers
from espnet_ext.export.tracing import PREPROCESS, trace, trace_features, traceable
from espnet_ext.export.whisper_mel import write_log_mel
from espnet_ext.export.whisper_source import LEAST

MODEL = "model.onnx"
_FRAMES = 150  # of the input that is traced


class Frames(nn.Module):
    """Normalisation, encoder and output of a model on features."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr, self.classifies = asr, is_classifier(asr)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities, and their number of frames."""
        if whisper_of(self.asr) is not None:
            return self._scored(*self.asr.encoder.encode_mel(x, x_lens))
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), x_lens)
        encoded, lengths, _ = self.asr.encoder(x, x_lens)
        return self._scored(encoded[0] if isinstance(encoded, tuple) else encoded, lengths)

    def _scored(self, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.classifies:
            return self.asr.decoder(encoded, lengths).log_softmax(-1), lengths
        return self.asr.ctc.log_softmax(encoded), lengths


def whisper_of(asr: Any) -> WhisperStack | None:
    """The Whisper that a model's encoder is, if it is one."""
    base = getattr(asr.encoder, "base", None)
    return base if isinstance(base, WhisperStack) else None


def features_of(decoder: Decoder, wave: Tensor) -> Tensor:
    """The features (frames, features) of samples (n,) as training computes them."""
    whisper = whisper_of(decoder.model)
    if whisper is None:
        return decoder.source.prepared(wave, decoder.width)
    return whisper.log_mel(F.pad(wave, (0, max(0, _least(decoder) - len(wave)))))


def _least(decoder: Decoder) -> int:
    """Samples of the shortest speech that a Whisper encodes."""
    return max(LEAST, decoder.model.encoder.pad_to)


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
    whisper = whisper_of(asr)
    if whisper is None and (asr.frontend is not None or decoder.width is None):
        raise UserError("only models of log-mel, or on a Whisper's encoder, can be exported")
    counted = use_integers(asr, state, products)
    width = decoder.width
    if whisper is None:
        trace_features(decoder, folder)
    else:
        mel = np.asarray(whisper.extractor.mel_filters, np.float32)
        write_log_mel(folder / PREPROCESS, mel, _least(decoder), frames_first=True)
        width = mel.shape[1]
    x, lengths = torch.zeros(2, _FRAMES, width or 0), torch.tensor([_FRAMES, _FRAMES - 9])
    inputs = {"x": {0: "N", 1: "frames"}, "x_lens": {0: "N"}}
    outputs = {"log_probs": {0: "N"}, "log_probs_len": {0: "N"}}
    if not is_classifier(asr):
        outputs["log_probs"][1] = "out_frames"
    with traceable(asr):
        trace(Frames(asr).eval(), (x, lengths), folder / MODEL, inputs, outputs)
    return dict(counted)
