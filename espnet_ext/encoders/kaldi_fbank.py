"""Log-mel features by Kaldi's definition: one function, and an ESPnet frontend around it.

The definition is that of on-device runtimes (sherpa-onnx, kaldi-native-fbank), so that a
model trained here runs there: 25 ms Povey windows every 10 ms, no dither, frames centred
with reflection at the edges (``snip_edges=False``), mel filters from 20 Hz to 400 Hz below
half the sampling rate, natural logarithm of the power, samples in [-1, 1].
"""

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor
from torchaudio.compliance import kaldi


def kaldi_fbank(wave: Tensor, fs: int = 16000, n_mels: int = 80) -> Tensor:
    """Return (frames, n_mels) float32 for a wave (samples,) in [-1, 1] at ``fs`` Hz."""
    return kaldi.fbank(
        wave.unsqueeze(0),
        sample_frequency=fs,
        num_mel_bins=n_mels,
        dither=0.0,
        snip_edges=False,
        high_freq=-400.0,
    )


class KaldiFbank(AbsFrontend):
    """Frontend ``kaldi_fbank``: raw audio to Kaldi-definition log-mel."""

    def __init__(self, fs: int = 16000, n_mels: int = 80):
        super().__init__()
        self.fs = fs
        self.n_mels = n_mels

    def output_size(self) -> int:
        """Number of mel bins."""
        return self.n_mels

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, samples) and lengths into (batch, frames, n_mels) and lengths.

        Each utterance is cut to its own length first: reflection at the edge must not see
        padding, so that a batch gives what the utterances give alone.
        """
        feats = [
            kaldi_fbank(wave[:length], self.fs, self.n_mels)
            for wave, length in zip(input.float(), input_lengths.tolist(), strict=True)
        ]
        lengths = torch.tensor([len(f) for f in feats], device=input.device)
        return torch.nn.utils.rnn.pad_sequence(feats, batch_first=True), lengths
