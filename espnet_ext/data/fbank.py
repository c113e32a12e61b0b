"""Log-mel features by Kaldi's definition.

The definition is that of on-device runtimes (sherpa-onnx, kaldi-native-fbank), so that a
model trained here runs there: 25 ms Povey windows every 10 ms, no dither, frames centred
with reflection at the edges (``snip_edges=False``), mel filters from 20 Hz to 400 Hz below
half the sampling rate, natural logarithm of the power, samples in [-1, 1].
"""

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
