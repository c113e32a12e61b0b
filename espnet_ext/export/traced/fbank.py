"""Log-mel as torch modules that can be traced: of ``data.fbank``, and of ESPnet's frontend."""

import math
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from onnx import TensorProto
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from espnet_ext.data.fbank import PREEMPHASIS, nemo_filters
from espnet_ext.data.features import KALDI
from espnet_ext.errors import UserError

_DELTA = 2  # frames on each side that a difference looks at


class Fbank(nn.Module):
    """Samples (1, n) in [-1, 1] to log-mel (1, frames, bins x (1 + deltas)).

    ``pieces``: of a stream, whose windows are all inside.
    """

    mel: Tensor
    window: Tensor

    def __init__(
        self,
        rate: int,
        bins: int,
        deltas: int = 0,
        definition: str = KALDI,
        pieces: bool = False,
    ):
        super().__init__()
        self.pieces, self.removes_mean = pieces, definition == KALDI
        self.length, self.shift, self.deltas = rate * 25 // 1000, rate // 100, deltas
        self.size = 1 << (self.length - 1).bit_length()  # of the Fourier transform
        if definition == KALDI:
            mel, _ = kaldi.get_mel_banks(bins, self.size, rate, 20.0, -400.0, 100.0, -500.0, 1.0)
            mel = nn.functional.pad(mel, (0, 1)).T.contiguous()
            window = torch.hann_window(self.length, periodic=False).pow(0.85)
        else:
            mel, window = nemo_filters(rate, bins, self.size), torch.hann_window(self.length)
        self.register_buffer("mel", mel)
        self.register_buffer("window", window)

    def forward(self, audio: Tensor) -> Tensor:
        """Compute the features; the edges are reflected unless ``pieces``."""
        wave = audio[0]
        edge = 0 if self.pieces else self.length // 2 - self.shift // 2
        if self.pieces:
            count = (wave.shape[0] - self.length) // self.shift + 1
        else:
            count = (wave.shape[0] + self.shift // 2) // self.shift
        frames = _frames(wave, count, self.length, self.shift, edge, repeated=1)
        if self.removes_mean:
            frames = frames - frames.mean(1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
        frames = (frames - PREEMPHASIS * before) * self.window
        power = _power(frames, self.length, self.size)
        found = (power @ self.mel).clamp_min(torch.finfo(torch.float32).eps).log()
        parts = [found]
        for _ in range(self.deltas):
            parts.append(_differences(parts[-1]))
        return torch.cat(parts, 1).unsqueeze(0)


class EspnetLogMel(nn.Module):
    """Samples (1, n) to log-mel (1, frames, bins) as ESPnet's ``frontend: default``."""

    window: Tensor

    def __init__(self, frontend: DefaultFrontend):
        """Read the options of a frontend.

        Raises:
            UserError: it does more than a Fourier transform and log-mel.
        """
        super().__init__()
        stft, enhance = frontend.stft, frontend.frontend
        plain = stft is not None and stft.center and stft.onesided and not stft.normalized
        if not plain or (enhance is not None and (enhance.use_wpe or enhance.use_beamformer)):
            raise UserError("frontend_conf: only center, no enhancement, is exported")
        self.size, self.shift, self.logmel = stft.n_fft, stft.hop_length, frontend.logmel
        kind = "ones" if stft.window is None else f"{stft.window}_window"
        window = getattr(torch, kind)(stft.win_length)
        before = (self.size - stft.win_length) // 2
        after = self.size - stft.win_length - before
        self.register_buffer("window", nn.functional.pad(window, (before, after)))

    def forward(self, audio: Tensor) -> Tensor:
        """Compute the features; the edges are reflected."""
        wave = audio[0]
        count = wave.shape[0] // self.shift + 1
        frames = _frames(wave, count, self.size, self.shift, self.size // 2, repeated=0)
        found, _ = self.logmel(_power(frames * self.window, self.size, self.size).unsqueeze(0))
        return found


def _frames(wave: Tensor, count: int, length: int, shift: int, edge: int, repeated: int) -> Tensor:
    """Windows (count, length) of samples (n,), the first ``edge`` samples before the start.

    Edges are reflected; the sample at an edge is ``repeated`` once or not at all.
    """
    first = torch.arange(count, device=wave.device) * shift
    # Of a number that depends on the input tracing makes no constant, which would be stored.
    place = torch.arange(length + 0 * wave.shape[0], device=wave.device)
    index = first.unsqueeze(1) + place - edge
    index = torch.where(index < 0, -index - repeated, index)
    last = 2 * wave.shape[0] - 2 + repeated
    return wave[torch.where(index >= wave.shape[0], last - index, index)]


class _Waves(torch.autograd.Function):
    """Cosines and sines (length, size // 2 + 1) of a Fourier transform of ``size`` samples.

    A session computes them once, when it is made. Constants would be most bytes of a graph.
    """

    @staticmethod
    def forward(ctx: Any, length: int, size: int) -> tuple[Tensor, Tensor]:
        turns = torch.arange(size // 2 + 1) * torch.arange(length).unsqueeze(1) % size
        angle = turns.float() * (2 * math.pi / size)
        return angle.cos(), angle.sin()

    @staticmethod
    def symbolic(g: Any, length: int, size: int) -> Any:
        places = torch.arange(length).unsqueeze(1), torch.arange(size // 2 + 1)
        place, frequency, whole, step = (
            g.op("Constant", value_t=one)
            for one in (*places, torch.tensor(size), torch.tensor(2 * math.pi / size))
        )
        turns = g.op("Mod", g.op("Mul", frequency, place), whole)
        angle = g.op("Mul", g.op("Cast", turns, to_i=TensorProto.FLOAT), step)
        return g.op("Cos", angle), g.op("Sin", angle)


def _power(frames: Tensor, length: int, size: int) -> Tensor:
    """Power spectrum (count, size // 2 + 1) of windows (count, length)."""
    cosines, sines = _Waves.apply(length, size)
    return (frames @ cosines).square() + (frames @ sines).square()


def _differences(x: Tensor) -> Tensor:
    """Kaldi's regression over two frames before and after (frames, bins); edges are repeated."""
    padded = torch.cat([x[:1]] * _DELTA + [x] + [x[-1:]] * _DELTA)
    total = sum(
        k * (padded[_DELTA + k : padded.shape[0] - _DELTA + k] - padded[_DELTA - k : -_DELTA - k])
        for k in range(1, _DELTA + 1)
    )
    assert isinstance(total, Tensor)
    return total / (2 * sum(k * k for k in range(1, _DELTA + 1)))
