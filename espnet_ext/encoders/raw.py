"""ESPnet frontend for encoders that take samples themselves."""

from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor


class RawSpeech(AbsFrontend):
    """Frontend ``raw``: samples as frames of one feature.

    ESPnet has no such frontend (``sliding_window`` copies and cuts off the end); without any it
    would take the samples for features.
    """

    def __init__(self, fs: int = 16000):
        super().__init__()
        self.fs = fs

    def output_size(self) -> int:
        """Features a frame."""
        return 1

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, samples) and lengths into (batch, samples, 1) and lengths."""
        return input.unsqueeze(-1), input_lengths
