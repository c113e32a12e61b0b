"""Frames, chunks and the convolutional subsampling of the streaming encoder."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_ext.data.features import SUBSAMPLING
from espnet_ext.errors import UserError
from espnet_ext.methods.tensors import frame_mask

_FRAME_MS = 10 * SUBSAMPLING


@dataclass(frozen=True)
class Geometry:
    """Chunk, history and look-ahead in subsampled frames (40 ms)."""

    chunk: int
    history: int
    lookahead: int

    @property
    def block(self) -> int:
        """Frames that are encoded together: a chunk and its look-ahead."""
        return self.chunk + self.lookahead

    @classmethod
    def of(
        cls, chunk_ms: int, history_ms: int, lookahead_ms: int, frame_ms: int = _FRAME_MS
    ) -> "Geometry":
        """Convert milliseconds to frames; the history is rounded down (288 ms are 7 frames).

        Raises:
            UserError: a size that is not positive or not a multiple of the subsampling.
        """
        sizes = {"chunk_ms": chunk_ms, "history_ms": history_ms, "lookahead_ms": lookahead_ms}
        for name, size in sizes.items():
            if type(size) is not int or size < 0 or (name == "chunk_ms" and size == 0):
                raise UserError(f"{name} must be a number of milliseconds, not {size!r}")
            if name == "history_ms" and 0 < size < frame_ms:
                raise UserError(f"history_ms {size} is less than a frame; choose 0 or {frame_ms}")
            if name != "history_ms" and size % frame_ms:
                near = max(frame_ms, round(size / frame_ms) * frame_ms)
                raise UserError(
                    f"{name} {size} is no multiple of {frame_ms} ms ({frame_ms // 10}x "
                    f"subsampling of 10 ms frames); choose {near}"
                )
        return cls(*(size // frame_ms for size in sizes.values()))


def subsampled(lengths: Tensor) -> Tensor:
    """Return the frames after subsampling: ceil(length / 4)."""
    return (lengths + SUBSAMPLING - 1) // SUBSAMPLING


class ConvContext(NamedTuple):
    """The last input frame of each convolution: (B, 1, 1, F) and (B, c, 1, F / 2)."""

    features: Tensor
    hidden: Tensor


class ConvSubsampling(nn.Module):
    """Two 3x3 convolutions with stride 2 and padding 1, then a linear layer.

    Output frame s depends on the features 4s - 3 to 4s + 3. No later frame is needed, so chunks of
    a multiple of four frames need only the last frame before them.
    """

    def __init__(self, input_size: int, channels: int, output_size: int):
        super().__init__()
        self.bins = input_size
        # The padding in time is the context, which is zero at the start.
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1))
        self.out = nn.Linear(channels * -(-input_size // SUBSAMPLING), output_size)

    def initial(self, batch: int) -> ConvContext:
        """Return the context before the first frame of ``batch`` streams."""
        like = self.conv1.weight
        half = -(-self.bins // 2)
        return ConvContext(
            like.new_zeros(batch, 1, 1, self.bins),
            like.new_zeros(batch, self.conv1.out_channels, 1, half),
        )

    def forward(
        self, x: Tensor, lengths: Tensor, context: ConvContext, kept: int | None = None
    ) -> tuple[Tensor, ConvContext]:
        """Embed frames.

        Args:
            x: (B, n, bins).
            lengths: (B,) frames that are real.
            context: before the first of them.
            kept: a multiple of four; the context that is returned comes after so many frames,
                default n.

        Returns:
            (B, ceil(n / 4), d), and the context.
        """
        missing = -x.shape[1] % SUBSAMPLING
        x = x * frame_mask(lengths, x.shape[1]).unsqueeze(2)
        x = nn.functional.pad(x, (0, 0, 0, missing)).unsqueeze(1)
        hidden = torch.relu(self.conv1(torch.cat([context.features.to(x.dtype), x], dim=2)))
        # Padding is not zero any more: a bias was added.
        inside = frame_mask((lengths + 1) // 2, hidden.shape[2])
        hidden = hidden * inside[:, None, :, None]
        y = torch.relu(self.conv2(torch.cat([context.hidden.to(hidden.dtype), hidden], dim=2)))
        y = self.out(y.transpose(1, 2).flatten(2))
        end = x.shape[2] if kept is None else kept
        return y, ConvContext(x[:, :, end - 1 : end], hidden[:, :, end // 2 - 1 : end // 2])
