"""CTC recognisers and classifiers as graphs, traced by torch.

    preprocess   audio (1, n) -> x (1, frames, features)
    model        x (N, frames, features), x_lens (N,) -> log_probs, log_probs_len (N,)

On wav2vec 2.0, HuBERT and WavLM ``x`` is one utterance (1, n, 1), samples as the model reads them.
With recurrent layers N is 1 too.

``log_probs`` are (N, frames, V) of CTC, which is sherpa-onnx's contract ``from_zipformer_ctc``, and
(N, classes) of a classifier. Statistics of the normalisation are inside. Features are the model's
log-mel: of a Whisper's encoder (``encoder: stack``, ``frontend: ssl``) transformers' definition.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.bridge.configs.footprint import is_classifier
from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.folder import encode
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.features import LayerFeatures
from espnet_ext.encoders.pretrained.stack import RATE
from espnet_ext.encoders.pretrained.wav2vec2 import Wav2Vec2Stack
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.traced.rounded import use_integers
from espnet_ext.export.traced.tracing import (
    PREPROCESS,
    frame_count,
    trace,
    trace_features,
    traceable,
)
from espnet_ext.export.whisper.mel import write_log_mel
from espnet_ext.export.whisper.source import LEAST

MODEL = "model.onnx"
_FRAMES = 150  # of the input that is traced


class Frames(nn.Module):
    """Normalisation, encoder and output of a model on features."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr, self.classifies = asr, is_classifier(asr)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities, and their number of frames."""
        if isinstance(self.asr.encoder, StackEncoder):
            return self._scored(*self.asr.encoder.encode_features(x, x_lens))
        if isinstance(self.asr.frontend, LayerFeatures):
            x, x_lens = self.asr.frontend.of_features(x, x_lens)
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), x_lens)
        if isinstance(self.asr.encoder, RNNEncoder):
            # Not its forward: lengths after subsampling would be constants.
            for part in self.asr.encoder.enc:
                x, _, _ = part(x, x_lens)
            return self._scored(x, frame_count(x))
        encoded, lengths, _ = self.asr.encoder(x, x_lens)
        return self._scored(encoded[0] if isinstance(encoded, tuple) else encoded, lengths)

    def _scored(self, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.classifies:
            return self.asr.decoder(encoded, lengths).log_softmax(-1), lengths
        return self.asr.ctc.log_softmax(encoded), lengths


def pretrained_of(asr: Any) -> WhisperStack | Wav2Vec2Stack | None:
    """The model of transformers that a model's encoder is, or whose layers are its features."""
    if isinstance(asr.frontend, LayerFeatures):
        found: Any = asr.frontend.stack
    else:
        found = asr.encoder.base if isinstance(asr.encoder, StackEncoder) else None
    return found if isinstance(found, WhisperStack | Wav2Vec2Stack) else None


@torch.no_grad()
def scores(decoder: Decoder, wave: Tensor) -> Tensor:
    """The log-probabilities of samples (n,) by ESPnet's ``encode``: (frames, V) or (classes,)."""
    asr = decoder.model
    if pretrained_of(asr) is not None:
        wave = F.pad(wave, (0, max(0, _least(decoder) - len(wave))))
    found = encode(asr, decoder.source.prepared(wave, decoder.width))
    return (found.log_softmax(-1) if is_classifier(asr) else asr.ctc.log_softmax(found))[0]


def _least(decoder: Decoder) -> int:
    """Samples that a pretrained model has of the shortest speech."""
    shortest = LEAST if isinstance(pretrained_of(decoder.model), WhisperStack) else 0
    return max(shortest, getattr(decoder.model.encoder, "pad_to", 0))


def write(
    decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
) -> dict[int, int]:
    """Write the two graphs; return how many weights are stored in how many bits.

    Args:
        decoder: the model; its layers are replaced by rounded ones.
        state: of its packed file; empty for a model at 32 bits.
        folder: that exists.
        products: see ``graphs.graph.Graph``.

    Raises:
        UserError: no CTC and no classes, features that the graph cannot compute, or an encoder
            that cannot be traced.
    """
    asr = decoder.model
    stack, width = pretrained_of(asr), 0
    counted = use_integers(asr, state, products)
    if isinstance(stack, WhisperStack):
        mel = np.asarray(stack.extractor.mel_filters, np.float32)
        write_log_mel(folder / PREPROCESS, mel, _least(decoder), frames_first=True)
        width = mel.shape[1]
    elif stack is None:
        width = trace_features(decoder, folder)
    else:
        audio, names = torch.randn(1, RATE), ({"audio": {1: "n"}}, {"x": {1: "n"}})
        trace(_Normalised(stack, _least(decoder)), (audio,), folder / PREPROCESS, *names)
    given = _batch(width)
    if isinstance(stack, Wav2Vec2Stack):
        given = torch.randn(1, RATE, 1), torch.tensor([RATE])
    elif isinstance(asr.encoder, RNNEncoder):
        given = torch.zeros(1, _FRAMES, width), torch.tensor([_FRAMES])
    batch: dict[int, str] = {} if len(given[0]) == 1 else {0: "N"}
    inputs = {"x": {**batch, 1: "frames"}, "x_lens": batch}
    outputs = {"log_probs": dict(batch), "log_probs_len": batch}
    if not is_classifier(asr):
        outputs["log_probs"][1] = "out_frames"
    with traceable(asr):
        trace(Frames(asr).eval(), given, folder / MODEL, inputs, outputs)
    return dict(counted)


def _batch(width: int) -> tuple[Tensor, Tensor]:
    """Features of two utterances that are traced, and their lengths."""
    return torch.zeros(2, _FRAMES, width), torch.tensor([_FRAMES, _FRAMES - 9])


class _Normalised(nn.Module):
    """Samples as a wav2vec 2.0 reads them."""

    def __init__(self, stack: Wav2Vec2Stack, least: int):
        super().__init__()
        self.stack, self.least = stack, least

    def forward(self, audio: Tensor) -> Tensor:
        """Map (1, n) to (1, n, 1); shorter speech is filled up with silence."""
        missing = (self.least - frame_count(audio.unsqueeze(-1))[0]).clamp(min=0)
        filled = torch.cat([audio, audio.new_zeros(1, missing)], 1)
        return self.stack.normalised(filled).unsqueeze(-1)
