"""Log-mel features by the definitions that on-device runtimes have.

A model trained on them runs in sherpa-onnx and kaldi-native-fbank. ``kaldi``: 25 ms Povey windows
every 10 ms, no dither, frames centred with reflection at the edges (``snip_edges=False``), mel
filters from 20 Hz to 400 Hz below half the sampling rate, natural logarithm of the power, samples
in [-1, 1]. ``nemo``, which sherpa-onnx computes for models of NeMo, such as streaming transducers
with an LSTM: Hann windows, means kept, librosa's mel filters from 0 Hz to half the sampling rate.

Differences are Kaldi's regression over two frames before and two after; the first and last frame
are repeated beyond the edges.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas, melscale_fbanks

from espnet_ext.data.features import FRAMES_PER_SECOND, KALDI, Fbank, known_definition

PREEMPHASIS = 0.97


def log_mel(
    wave: Tensor,
    fs: int = 16000,
    n_mels: int = 80,
    deltas: int = 0,
    definition: str = KALDI,
    snip_edges: bool = False,
) -> Tensor:
    """Return features of a wave (samples,) in [-1, 1] at ``fs`` Hz.

    Args:
        wave: samples.
        fs: rate.
        n_mels: mel filters.
        deltas: orders of differences.
        definition: one of ``features.DEFINITIONS``.
        snip_edges: whole windows only, without reflection at the edges.

    Returns:
        (frames, n_mels * (1 + deltas)) float32: log-mel, then each order of differences.
    """
    compute = kaldi_fbank if known_definition(definition) == KALDI else _nemo_fbank
    parts = [compute(wave, fs, n_mels, snip_edges=snip_edges)]
    for _ in range(deltas):
        parts.append(compute_deltas(parts[-1].T).T)
    return torch.cat(parts, dim=1)


def kaldi_fbank(
    wave: Tensor, fs: int = 16000, n_mels: int = 80, snip_edges: bool = False
) -> Tensor:
    """The same by the definition ``kaldi``, without differences."""
    return kaldi.fbank(
        wave.unsqueeze(0),
        sample_frequency=fs,
        num_mel_bins=n_mels,
        dither=0.0,
        snip_edges=snip_edges,
        high_freq=-400.0,
    )


@functools.cache
def nemo_filters(fs: int, n_mels: int, size: int) -> Tensor:
    """Mel filters (size / 2 + 1, n_mels) of the definition ``nemo``."""
    return melscale_fbanks(
        size // 2 + 1, 0.0, fs / 2, n_mels, fs, norm="slaney", mel_scale="slaney"
    )


def _nemo_fbank(wave: Tensor, fs: int, n_mels: int, snip_edges: bool) -> Tensor:
    length, shift = fs * 25 // 1000, fs // FRAMES_PER_SECOND
    if len(wave) < length:
        return wave.new_zeros(0, n_mels)
    if not snip_edges:
        edge, count = length // 2 - shift // 2, (len(wave) + shift // 2) // shift
        whole = torch.cat([wave[:edge].flip(0), wave, wave[-length:].flip(0)])
        wave = whole[: (count - 1) * shift + length]
    frames = wave.unfold(0, length, shift)
    frames = frames - PREEMPHASIS * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    size = 1 << (length - 1).bit_length()  # of the Fourier transform
    spectrum = torch.fft.rfft(frames * torch.hann_window(length, device=wave.device), size)
    power = spectrum.abs().square()
    mel = power @ nemo_filters(fs, n_mels, size).to(wave.device)
    return mel.clamp_min(torch.finfo(torch.float32).eps).log()


def fbank_extractor(definition: Fbank) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a wave (samples,) in [-1, 1] to features (frames, width) float32."""

    def extract(wave: np.ndarray) -> np.ndarray:
        options = (definition.rate, definition.bins, definition.deltas, definition.definition)
        return log_mel(torch.from_numpy(wave), *options).numpy()

    return extract


class OnlineFbank:
    """``log_mel`` of a wave in pieces: the same frames, each as soon as it is complete.

    A frame needs the samples up to 17.5 ms after the middle of its 10 ms.
    """

    def __init__(self, fs: int = 16000, n_mels: int = 80, definition: str = KALDI):
        self.fs, self.n_mels, self.definition = fs, n_mels, definition
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
        options = (self.fs, self.n_mels, 0, self.definition)
        return log_mel(piece, *options, snip_edges=True)
