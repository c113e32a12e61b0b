"""A Conformer (arXiv 2005.08100) that streams as ``streaming_transformer`` does.

Its convolutions are causal: a frame sees the frames before it, those of earlier chunks too. The
frames of a look-ahead see the chunk and the look-ahead before them. So the latency is that of the
Transformer, chunk and look-ahead at any depth.
"""

import torch
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import ConvolutionModule
from espnet2.legacy.nets.pytorch_backend.conformer.swish import Swish
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.encoders.streaming_transformer import (
    ChunkAttention,
    StreamingTransformerEncoder,
    with_past,
)
from espnet_ext.errors import UserError

_HALF = 0.5  # share of a feed-forward network that is added


class ChunkConvolution(ConvolutionModule):
    """ESPnet's convolution module, causal, on blocks."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, kernel_size, Swish())
        self.depthwise_conv.padding = (0,)
        self.before = kernel_size - 1  # frames that a frame sees

    def forward_chunks(self, x: Tensor, past: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Convolve the frames of every block with those before them.

        Args:
            x: (B, N, C + R, d), N blocks of a chunk and its look-ahead.
            past: gated frames (B, kernel - 1, d) before the first block.
            chunk: C.

        Returns:
            (B, N, C + R, d), and the gated frames before the next block.
        """
        batch, blocks, width, size = x.shape
        flat = x.flatten(0, 1).transpose(1, 2)
        gated = F.glu(self.pointwise_conv1(flat), dim=1).transpose(1, 2).unflatten(0, (batch, -1))
        starts = torch.arange(blocks, device=x.device).unsqueeze(1) * chunk
        windows = starts + torch.arange(self.before, device=x.device)
        seen, kept = with_past(gated, past, windows, chunk)
        y = self.depthwise_conv(seen.flatten(0, 1).transpose(1, 2))
        y = self.pointwise_conv2(self.activation(self.norm(y)))
        return y.transpose(1, 2).reshape(batch, blocks, width, size), kept


class ConformerChunkLayer(nn.Module):
    """Conformer layer on blocks; parts are named as in ESPnet's."""

    def __init__(
        self, size: int, heads: int, units: int, dropout: float, attention: float, kernel: int
    ):
        super().__init__()
        for name in ("norm_ff_macaron", "norm_mha", "norm_conv", "norm_ff", "norm_final"):
            setattr(self, name, nn.LayerNorm(size))
        self.feed_forward_macaron = PositionwiseFeedForward(size, units, dropout, Swish())
        self.self_attn = ChunkAttention(heads, size, attention)
        self.conv_module = ChunkConvolution(size, kernel)
        self.feed_forward = PositionwiseFeedForward(size, units, dropout, Swish())
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, past: tuple[Tensor, ...], windows: Tensor, bias: Tensor, chunk: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``ChunkAttention.forward_chunks``; the last of ``past`` is of the convolution."""
        x = x + _HALF * self.dropout(self.feed_forward_macaron(self.norm_ff_macaron(x)))
        pair = past[0], past[1]
        y, kept = self.self_attn.forward_chunks(self.norm_mha(x), pair, windows, bias, chunk)
        x = x + self.dropout(y)
        y, last = self.conv_module.forward_chunks(self.norm_conv(x), past[2], chunk)
        x = x + self.dropout(y)
        x = x + _HALF * self.dropout(self.feed_forward(self.norm_ff(x)))
        return self.norm_final(x), (*kept, last)


class StreamingConformerEncoder(StreamingTransformerEncoder):
    """Encoder ``streaming_conformer``: see ``streaming_transformer`` for the other options.

    Args:
        input_size: features per frame (10 ms).
        output_size: d.
        attention_heads: heads.
        linear_units: width of the feed-forward layers, of which each layer has two.
        num_blocks: layers.
        conv_channels: of the two 3x3 convolutions with stride 2.
        cnn_module_kernel: frames of 40 ms that a convolution sees, an odd number.
        dropout_rate: after every part of a layer and in the feed-forward layers.
        attention_dropout_rate: on attention weights.
        chunk_ms: C, a multiple of 40 ms.
        history_ms: H, of attention, rounded down to whole frames of 40 ms.
        lookahead_ms: R, a multiple of 40 ms.

    Raises:
        UserError: a kernel that is even.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        num_blocks: int = 12,
        conv_channels: int = 256,
        cnn_module_kernel: int = 15,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        chunk_ms: int = 160,
        history_ms: int = 1280,
        lookahead_ms: int = 160,
    ):
        if cnn_module_kernel < 3 or cnn_module_kernel % 2 == 0:
            raise UserError(
                f"encoder_conf: cnn_module_kernel must be an odd number from 3 on, not "
                f"{cnn_module_kernel}"
            )
        self._kernel = cnn_module_kernel
        super().__init__(
            input_size,
            output_size,
            attention_heads,
            linear_units,
            num_blocks,
            conv_channels,
            dropout_rate,
            attention_dropout_rate,
            chunk_ms,
            history_ms,
            lookahead_ms,
        )

    def _layer(self, size: int, heads: int, units: int, *rates: float) -> nn.Module:
        dropout, attention = rates
        return ConformerChunkLayer(size, heads, units, dropout, attention, self._kernel)

    def _before(self, batch: int) -> tuple[Tensor, ...]:
        frames = self._kernel - 1
        none = self.relative_bias.new_zeros(batch, frames, self._output_size)
        return (*super()._before(batch), none)
