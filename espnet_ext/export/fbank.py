"""Log-mel (``data.fbank``) as a torch module that can be traced to a graph."""

import math

import torch
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from espnet_ext.data.fbank import PREEMPHASIS, nemo_filters
from espnet_ext.data.features import KALDI

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
        first = torch.arange(count, device=wave.device) * self.shift
        # Of a number that depends on the input tracing makes no constant, which would be stored.
        none = 0 * wave.shape[0]
        place = torch.arange(self.length + none, device=wave.device)
        index = first.unsqueeze(1) + place - edge
        index = torch.where(index < 0, -index - 1, index)
        index = torch.where(index >= wave.shape[0], 2 * wave.shape[0] - 1 - index, index)
        frames = wave[index]
        if self.removes_mean:
            frames = frames - frames.mean(1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
        frames = (frames - PREEMPHASIS * before) * self.window
        frequency = torch.arange(self.size // 2 + 1 + none, device=wave.device)
        turns = (frequency.unsqueeze(0) * place.unsqueeze(1)) % self.size
        angle = turns.float() * (2 * math.pi / self.size)
        power = (frames @ angle.cos()).square() + (frames @ angle.sin()).square()
        found = (power @ self.mel).clamp_min(torch.finfo(torch.float32).eps).log()
        parts = [found]
        for _ in range(self.deltas):
            parts.append(_differences(parts[-1]))
        return torch.cat(parts, 1).unsqueeze(0)


def _differences(x: Tensor) -> Tensor:
    """Kaldi's regression over two frames before and after (frames, bins); edges are repeated."""
    padded = torch.cat([x[:1]] * _DELTA + [x] + [x[-1:]] * _DELTA)
    total = sum(
        k * (padded[_DELTA + k : padded.shape[0] - _DELTA + k] - padded[_DELTA - k : -_DELTA - k])
        for k in range(1, _DELTA + 1)
    )
    assert isinstance(total, Tensor)
    return total / (2 * sum(k * k for k in range(1, _DELTA + 1)))
