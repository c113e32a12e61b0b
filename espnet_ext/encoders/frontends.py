"""ESPnet frontends: log-mel of on-device runtimes, raw samples, features that stage 2 writes."""

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet_ext.data.fbank import log_mel
from espnet_ext.data.features import known_definition
from espnet_ext.errors import UserError


class KaldiFbank(AbsFrontend):
    """Frontend ``kaldi_fbank``: raw audio to log-mel as Kaldi defines it (``data.fbank``).

    ``definition: nemo`` selects the other definition that sherpa-onnx has. With ``deltas: 2`` first
    and second differences follow (26 bins: 78 features a frame).
    """

    def __init__(
        self, fs: int = 16000, n_mels: int = 80, deltas: int = 0, definition: str = "kaldi"
    ):
        super().__init__()
        self.definition = known_definition(definition)
        self.fs = fs
        self.n_mels = n_mels
        self.deltas = deltas

    def output_size(self) -> int:
        """Features per frame."""
        return self.n_mels * (1 + self.deltas)

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, samples) and lengths into (batch, frames, features) and lengths.

        Each utterance is cut to its length first: reflection at its end must not include padding,
        so that a batch gives the same features as single utterances.
        """
        # In float32 whatever the training runs in: the logarithm of a bfloat16 power is noise.
        with torch.autocast(input.device.type, enabled=False):
            feats = [
                log_mel(wave[:length], self.fs, self.n_mels, self.deltas, self.definition)
                for wave, length in zip(input.float(), input_lengths.tolist(), strict=True)
            ]
        lengths = torch.tensor([len(f) for f in feats], device=input.device)
        return torch.nn.utils.rnn.pad_sequence(feats, batch_first=True), lengths


class RawSpeech(AbsFrontend):
    """Frontend ``raw``: samples as frames of one feature, for encoders that read samples.

    ESPnet's ``sliding_window`` copies them and cuts off the end. Without a frontend ESPnet would
    treat the samples as features.
    """

    def __init__(self, fs: int = 16000):
        super().__init__()
        self.fs = fs

    def output_size(self) -> int:
        """Features per frame."""
        return 1

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, samples) and lengths into (batch, samples, 1) and lengths."""
        return input.unsqueeze(-1), input_lengths


class SSLFeatures(AbsFrontend):
    """Frontend ``ssl``: layers of wav2vec 2.0, HuBERT, WavLM or Whisper (``data.ssl_model``).

    The model is frozen, so stage 2 computes the features once for all trainings: with
    ``recipe: {features: ark}`` ESPnet builds no frontend, and this class only declares the options.
    """

    def __init__(self, folder: str, layer: int | list[int], architecture: dict | None = None):
        """Refuse to be built: features of raw audio would cost the whole model in every epoch."""
        raise UserError("frontend: ssl needs recipe: features: ark; stage 2 writes its features")

    def output_size(self) -> int:
        raise NotImplementedError

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError
