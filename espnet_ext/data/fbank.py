"""Log-mel features by Kaldi's definition.

The definition is that of on-device runtimes (sherpa-onnx, kaldi-native-fbank), so that a
model trained here runs there: 25 ms Povey windows every 10 ms, no dither, frames centred
with reflection at the edges (``snip_edges=False``), mel filters from 20 Hz to 400 Hz below
half the sampling rate, natural logarithm of the power, samples in [-1, 1].

Differences are Kaldi's regression over two frames before and two behind, the first and last
frame repeated beyond the edges; second differences are those of the first.
"""

import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas


def kaldi_fbank(wave: Tensor, fs: int = 16000, n_mels: int = 80, deltas: int = 0) -> Tensor:
    """Return features of a wave (samples,) in [-1, 1] at ``fs`` Hz.

    Returns:
        (frames, n_mels * (1 + deltas)) float32: log-mel, then each order of differences.
    """
    feats = kaldi.fbank(
        wave.unsqueeze(0),
        sample_frequency=fs,
        num_mel_bins=n_mels,
        dither=0.0,
        snip_edges=False,
        high_freq=-400.0,
    )
    parts = [feats]
    for _ in range(deltas):
        parts.append(compute_deltas(parts[-1].T).T)
    return torch.cat(parts, dim=1)
