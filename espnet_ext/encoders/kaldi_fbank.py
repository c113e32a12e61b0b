"""ESPnet frontend around Kaldi-definition log-mel (``data.fbank``)."""

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet_ext.data.fbank import kaldi_fbank


class KaldiFbank(AbsFrontend):
    """Frontend ``kaldi_fbank``: raw audio to Kaldi-definition log-mel.

    With ``deltas: 2`` first and second differences follow (26 bins: 78 features a frame).
    """

    def __init__(self, fs: int = 16000, n_mels: int = 80, deltas: int = 0):
        super().__init__()
        self.fs = fs
        self.n_mels = n_mels
        self.deltas = deltas

    def output_size(self) -> int:
        """Features a frame."""
        return self.n_mels * (1 + self.deltas)

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, samples) and lengths into (batch, frames, features) and lengths.

        Each utterance is cut to its own length first: reflection at the edge must not see
        padding, so that a batch gives what the utterances give alone.
        """
        # In float32 whatever the training runs in: the logarithm of a bfloat16 power is noise.
        with torch.autocast(input.device.type, enabled=False):
            feats = [
                kaldi_fbank(wave[:length], self.fs, self.n_mels, self.deltas)
                for wave, length in zip(input.float(), input_lengths.tolist(), strict=True)
            ]
        lengths = torch.tensor([len(f) for f in feats], device=input.device)
        return torch.nn.utils.rnn.pad_sequence(feats, batch_first=True), lengths
