"""Log-mel features by Kaldi's definition.

On-device runtimes (sherpa-onnx, kaldi-native-fbank) have the same definition, so a model trained
here runs there: 25 ms Povey windows every 10 ms, no dither, frames centred with reflection at the
edges (``snip_edges=False``), mel filters from 20 Hz to 400 Hz below half the sampling rate, natural
logarithm of the power, samples in [-1, 1]. Differences are Kaldi's regression over two frames
before and two after; the first and last frame are repeated beyond the edges.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from espnet_ext.data.features import FRAMES_PER_SECOND, Fbank


def kaldi_fbank(
    wave: Tensor, fs: int = 16000, n_mels: int = 80, deltas: int = 0, snip_edges: bool = False
) -> Tensor:
    """Return features of a wave (samples,) in [-1, 1] at ``fs`` Hz.

    Returns:
        (frames, n_mels * (1 + deltas)) float32: log-mel, then each order of differences.
    """
    feats = kaldi.fbank(
        wave.unsqueeze(0),
        sample_frequency=fs,
        num_mel_bins=n_mels,
        dither=0.0,
        snip_edges=snip_edges,
        high_freq=-400.0,
    )
    parts = [feats]
    for _ in range(deltas):
        parts.append(compute_deltas(parts[-1].T).T)
    return torch.cat(parts, dim=1)


def fbank_extractor(definition: Fbank) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a wave (samples,) in [-1, 1] to features (frames, width) float32."""

    def extract(wave: np.ndarray) -> np.ndarray:
        bins, rate = definition.bins, definition.rate
        return kaldi_fbank(torch.from_numpy(wave), rate, bins, definition.deltas).numpy()

    return extract


class OnlineFbank:
    """``kaldi_fbank`` of a wave in pieces: the same frames, each as soon as it is complete.

    A frame needs the samples up to 17.5 ms after the middle of its 10 ms.
    """

    def __init__(self, fs: int = 16000, n_mels: int = 80):
        self.fs, self.n_mels = fs, n_mels
        self.window, self.shift = fs * 25 // 1000, fs // FRAMES_PER_SECOND
        self._edge = self.window // 2 - self.shift // 2  # samples before the first frame
        self._samples = self._frames = 0  # accepted, returned
        self._buffer = torch.zeros(0)  # from the start of the next frame
        self._tail = torch.zeros(0)  # the last window, for reflection at the end

    def accept(self, wave: Tensor) -> Tensor:
        """Accept samples (n,); return the frames (m, n_mels) that they complete."""
        before = self._samples
        self._samples += len(wave)
        self._buffer = torch.cat([self._buffer, wave.float()])
        self._tail = torch.cat([self._tail, wave.float()])[-self.window :]
        if self._samples < self.window:
            return torch.zeros(0, self.n_mels)
        if before < self.window:  # the first frames reflect the start
            self._buffer = torch.cat([self._buffer[: self._edge].flip(0), self._buffer])
        return self._compute((len(self._buffer) - self.window) // self.shift + 1)

    def finish(self) -> Tensor:
        """Return the last frames, which reflect the end; a stream below a window has none."""
        if self._samples < self.window:
            return torch.zeros(0, self.n_mels)
        self._buffer = torch.cat([self._buffer, self._tail.flip(0)])
        return self._compute((self._samples + self.shift // 2) // self.shift - self._frames)

    def _compute(self, count: int) -> Tensor:
        """Compute the next ``count`` frames and drop the samples that no later one needs."""
        if count <= 0:
            return torch.zeros(0, self.n_mels)
        piece = self._buffer[: (count - 1) * self.shift + self.window]
        self._buffer = self._buffer[count * self.shift :]
        self._frames += count
        return kaldi_fbank(piece, self.fs, self.n_mels, snip_edges=True)
