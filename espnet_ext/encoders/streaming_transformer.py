"""The chunk-streaming Transformer encoder of ResidualTransformer (arXiv 2310.02489, section 3).

A chunk of C frames (of 40 ms, after subsampling) is encoded together with copies of the next R
frames, the look-ahead. All layers attend to H frames of history before the chunk, the chunk and
its look-ahead only. Because the look-ahead is encoded again with every chunk (as in Emformer,
arXiv 2010.10759), the latency is chunk + look-ahead at any depth; a mask over one copy of the
frames would add R frames of latency per layer.

Offline, all chunks of an utterance are computed at once. Streaming computes one after another and
keeps the keys and values of the last H frames. Both run the same layers on the same blocks.
"""

from dataclasses import dataclass, replace

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.data.features import SUBSAMPLING
from espnet_ext.encoders.chunks import (
    ConvContext,
    ConvSubsampling,
    Geometry,
    subsampled,
)
from espnet_ext.methods.tensors import frame_mask

_MASKED = -1e4  # its exp is 0 in every float type, and a fully masked row gives no NaN


@dataclass(frozen=True)
class StreamState:
    """State between two chunks of B streams; its size does not grow."""

    context: ConvContext  # of the convolutions
    pending: Tensor  # (B, p, d) embedded frames of an incomplete chunk, p < C + R
    pending_valid: Tensor  # (B, p), False for frames after the end of a stream
    # Per layer keys and values (B, H, d), and what else it keeps (B, ..., d).
    history: tuple[tuple[Tensor, ...], ...]
    history_valid: Tensor  # (B, H), False before the start and after the end of a stream
    final: bool = False  # the stream has ended


def with_past(x: Tensor, before: Tensor, windows: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Put the frames before every block in front of it.

    Args:
        x: (B, N, C + R, d), N blocks of a chunk and its look-ahead.
        before: (B, P, d), before the first block.
        windows: (N, P) positions of the frames before each block among ``before`` and the chunks.
        chunk: C.

    Returns:
        (B, N, P + C + R, d), and the frames (B, P, d) before the next block.
    """
    before, size = before.to(x.dtype), windows.shape[1]
    if len(windows) == 1:  # of one block the rest comes to this, in half as many operators
        both = torch.cat([before.unsqueeze(1), x], dim=2)
        return both, both.flatten(0, 1)[:, chunk : chunk + size]
    main = torch.cat([before, x[:, :, :chunk].flatten(1, 2)], dim=1)
    return torch.cat([main[:, windows], x], dim=2), main[:, main.shape[1] - size :]


class ChunkAttention(MultiHeadedAttention):
    """ESPnet's attention, restricted to blocks of history, chunk and look-ahead."""

    def forward_chunks(
        self, x: Tensor, past: tuple[Tensor, Tensor], windows: Tensor, bias: Tensor, chunk: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from the frames of every block to its history and the block itself.

        Args:
            x: (B, N, C + R, d), N blocks of a chunk and its look-ahead.
            past: keys and values (B, H, d) before the first block.
            windows: (N, H) positions of each block's history among ``past`` and the chunks.
            bias: (B, N, heads, C + R, H + C + R), or 1 for heads, added to the scores.
            chunk: C.

        Returns:
            (B, N, C + R, d), and the keys and values (B, H, d) before the next block.
        """
        batch, blocks, width, size = x.shape
        seen, kept = [], []
        for layer, before in zip((self.linear_k, self.linear_v), past, strict=True):
            both, after = with_past(layer(x), before, windows, chunk)
            seen.append(self._heads(both))
            kept.append(after)
        queries = self._heads(self.linear_q(x))
        dropout = self.dropout_rate if self.training else 0.0
        mask = bias.to(queries.dtype).flatten(0, 1)
        keys, values = seen
        y = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        y = y.transpose(1, 2).reshape(batch, blocks, width, size)
        return self.linear_out(y), (kept[0], kept[1])

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (B, N, frames, d) to (B N, heads, frames, d / heads)."""
        return x.flatten(0, 1).unflatten(-1, (self.h, self.d_k)).transpose(1, 2)


class ChunkLayer(nn.Module):
    """Pre-norm Transformer layer on blocks."""

    def __init__(self, size: int, heads: int, units: int, dropout: float, attention: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.self_attn = ChunkAttention(heads, size, attention)
        self.norm2 = nn.LayerNorm(size)
        self.feed_forward = PositionwiseFeedForward(size, units, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, past: tuple[Tensor, ...], windows: Tensor, bias: Tensor, chunk: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``ChunkAttention.forward_chunks``."""
        pair = past[0], past[1]
        y, kept = self.self_attn.forward_chunks(self.norm1(x), pair, windows, bias, chunk)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm2(x))), kept


class StreamingTransformerEncoder(AbsEncoder):
    """Encoder ``streaming_transformer``; the defaults are the paper's.

    Relative positions are one learned bias per head and distance, shared by all layers as in T5
    (8 x 22 numbers at the paper's sizes). The paper's parameter counts leave no room for more, so
    the last normalisation has no parameters.

    Args:
        input_size: features per frame (10 ms).
        output_size: d.
        attention_heads: heads.
        linear_units: width of the feed-forward layers.
        num_blocks: layers.
        conv_channels: of the two 3x3 convolutions with stride 2.
        dropout_rate: after attention and in and after the feed-forward layers.
        attention_dropout_rate: on attention weights.
        chunk_ms: C, a multiple of 40 ms.
        history_ms: H, rounded down to whole frames of 40 ms.
        lookahead_ms: R, a multiple of 40 ms.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 512,
        attention_heads: int = 8,
        linear_units: int = 2048,
        num_blocks: int = 18,
        conv_channels: int = 256,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        chunk_ms: int = 160,
        history_ms: int = 288,
        lookahead_ms: int = 160,
    ):
        super().__init__()
        self.geometry = Geometry.of(chunk_ms, history_ms, lookahead_ms)
        self._output_size = output_size
        self.embed = ConvSubsampling(input_size, conv_channels, output_size)
        self.dropout = nn.Dropout(dropout_rate)
        self.encoders = nn.ModuleList(
            self._layer(
                output_size, attention_heads, linear_units, dropout_rate, attention_dropout_rate
            )
            for _ in range(num_blocks)
        )
        # Distance of key and query, from the first frame of history to the last look-ahead.
        self.relative_bias = nn.Parameter(
            torch.zeros(attention_heads, self.geometry.history + 2 * self.geometry.block - 1)
        )
        self.after_norm = nn.LayerNorm(output_size, elementwise_affine=False)

    def _layer(self, size: int, heads: int, units: int, *rates: float) -> nn.Module:
        """A layer of these sizes; ``rates``: of dropout, and of that on attention weights."""
        return ChunkLayer(size, heads, units, *rates)

    def output_size(self) -> int:
        """Return the width d of the output."""
        return self._output_size

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode (B, T, input_size) of lengths ``ilens`` to (B, ceil(T / 4), d) and lengths."""
        frames = int(ilens.max())
        state, lengths = self.init_state(len(ilens)), subsampled(ilens)
        x, _ = self.embed(xs_pad[:, :frames], ilens, state.context)
        y, _ = self.encode_ready(x, frame_mask(lengths, x.shape[1]), state, final=True)
        return self.after_norm(y), lengths, None

    def init_state(self, batch: int = 1) -> StreamState:
        """Return the state before the first frame of ``batch`` streams."""
        like = self.relative_bias
        empty = like.new_zeros(batch, 0, self._output_size)
        return StreamState(
            context=self.embed.initial(batch),
            pending=empty,
            pending_valid=empty.new_zeros(batch, 0, dtype=torch.bool),
            history=tuple(self._before(batch) for _ in self.encoders),
            history_valid=like.new_zeros(batch, self.geometry.history, dtype=torch.bool),
        )

    def _before(self, batch: int) -> tuple[Tensor, ...]:
        """The state of a layer before the first chunk."""
        none = self.relative_bias.new_zeros(batch, self.geometry.history, self._output_size)
        return none, none

    def forward_chunk(
        self, x: Tensor, state: StreamState, lengths: Tensor | None = None, final: bool = False
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Encode the next frames of B streams whose look-ahead is complete.

        Args:
            x: (B, n, input_size); n is any multiple of 4, or any number if ``final``.
            state: of ``init_state`` or the last call; it is not changed.
            lengths: (B,) frames of ``x`` that belong to each stream, default n; a stream with
                fewer than n has ended and has 0 from then on.
            final: no frame follows: encode the rest.

        Returns:
            (B, m, d) frames, how many of them belong to each stream, and the next state.

        Raises:
            ValueError: ``n`` is not a multiple of 4, or the stream has ended.
        """
        if state.final:
            raise ValueError("the stream has ended; start another with init_state")
        if x.shape[1] % SUBSAMPLING and not final:
            raise ValueError(f"{x.shape[1]} frames are not a multiple of {SUBSAMPLING}")
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1], device=x.device)
        pending, valid = state.pending, state.pending_valid
        if x.shape[1]:
            embedded, context = self.embed(x, lengths, state.context)
            valid = torch.cat([valid, frame_mask(subsampled(lengths), embedded.shape[1])], dim=1)
            pending = torch.cat([pending, embedded], dim=1)
            state = replace(state, context=context)
        y, state = self.encode_ready(pending, valid, state, final)
        return self.after_norm(y), valid[:, : y.shape[1]].sum(1), state

    def encode_ready(
        self, x: Tensor, valid: Tensor, state: StreamState, final: bool
    ) -> tuple[Tensor, StreamState]:
        """Encode the chunks of embedded frames whose look-ahead is complete; the rest is pending.

        Args:
            x: (B, t, d), the frames since the last chunk.
            valid: (B, t), False for frames after the end of a stream.
            state: whose history is read.
            final: no frame follows: every chunk is complete.

        Returns:
            (B, m, d), not normalised, and the next state.
        """
        chunk, block = self.geometry.chunk, self.geometry.block
        frames = x.shape[1]
        count = -(-frames // chunk) if final else max(0, (frames - block) // chunk + 1)
        done = min(count * chunk, frames)
        ended = replace(state, pending=x[:, done:], pending_valid=valid[:, done:], final=final)
        if count == 0:
            return x[:, :0], ended
        missing = (count - 1) * chunk + block - frames
        x = F.pad(x, (0, 0, 0, max(0, missing)))
        seen = torch.cat([state.history_valid, F.pad(valid, (0, max(0, missing)))], dim=1)
        starts = torch.arange(count, device=x.device).unsqueeze(1) * chunk
        windows = starts + torch.arange(self.geometry.history, device=x.device)
        inside = starts + torch.arange(block, device=x.device)
        keys = torch.cat([windows, inside + self.geometry.history], dim=1)
        bias = self._bias().masked_fill(~seen[:, keys][:, :, None, None], _MASKED)
        y, history = self.dropout(x[:, inside]), []
        for layer, past in zip(self.encoders, state.history, strict=True):
            y, kept = layer(y, past, windows, bias, chunk)
            history.append(kept)
        seen = seen[:, count * chunk :][:, : self.geometry.history]
        ended = replace(ended, history=tuple(history), history_valid=seen)
        return y[:, :, :chunk].flatten(1, 2)[:, :done], ended

    def _bias(self) -> Tensor:
        """Return (1, 1, heads, C + R, H + C + R): the bias of every query and key of a block."""
        block = self.geometry.block
        device = self.relative_bias.device
        queries = torch.arange(block, device=device).unsqueeze(1)
        keys = torch.arange(self.geometry.history + block, device=device)
        return self.relative_bias[:, keys - queries + block - 1][None, None]
