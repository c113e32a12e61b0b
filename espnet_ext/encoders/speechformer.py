"""SpeechFormer: an encoder in four stages, from frames over phonemes and words to the utterance.

Chen et al., "SpeechFormer: A Hierarchical Efficient Framework Incorporating the Characteristics
of Speech", Interspeech 2022 (arXiv 2203.03812), and its code. In the first three stages every
token attends to those within a window of 50, 400 and 2,000 ms, in the last to all. After each of
the first three stages tokens are merged into one for every 50, 250 and 1,000 ms of speech: their
mean, a linear layer and a normalisation. Layers are post-norm with ReLU; positions are added only
in the attention of the first stage.

Two deviations from that code: it averages padding into the last token of a merge, while here only
frames of the utterance count, so that a batch gives the same as single utterances; and it silently
drops features if the heads do not divide the width, which is refused here.
"""

from collections.abc import Sequence

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import PositionalEncoding
from espnet2.legacy.nets.pytorch_backend.transformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.errors import UserError

WINDOWS_MS = (50, 400, 2000)  # of attention; the last stage has none
MERGES_MS = (50, 250, 1000)  # of speech per token after the stage


class LocalAttention(MultiHeadedAttention):
    """ESPnet's self-attention within a window around each token.

    The cost grows with the length, not with its square.
    """

    def __init__(self, heads: int, width: int, dropout: float, window: int | None, positions: bool):
        """Build the attention.

        Args:
            heads: number of heads, a divisor of ``width``.
            width: features of a token.
            dropout: of the weights.
            window: tokens that one attends to, centred on itself; None for all.
            positions: add sinusoids to the input (not to the residual connection).
        """
        super().__init__(heads, width, dropout)
        # An even window is widened by one, as in the paper's code.
        self.reach = None if window is None else window // 2
        self.positions = PositionalEncoding(width, 0.0) if positions else None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Map tokens (batch, time, width), given as query, key and value, to the same shape.

        ``mask`` (batch, 1, time) is True for tokens of the utterance.
        """
        if self.positions is not None:
            self.positions.extend_pe(query)
            query = query + self.positions.pe[:, : query.shape[1]]
        q, k, v = self.forward_qkv(query, query, query)  # (batch, head, time, width / heads)
        q = q * self.d_k**-0.5
        allowed = mask.unsqueeze(1)  # (batch, 1, 1, time)
        if self.reach is None:
            weights = self._weights(q @ k.transpose(-2, -1), allowed)
            context = weights @ v
        else:
            size = 2 * self.reach + 1
            around = (self.reach, self.reach)
            k, v = (_windows(F.pad(x, (0, 0, *around)), 2, size) for x in (k, v))
            allowed = _windows(F.pad(allowed, around), 3, size).squeeze(2)  # (b, 1, time, size)
            weights = self._weights((q.unsqueeze(-2) @ k).squeeze(-2), allowed)
            context = (v @ weights.unsqueeze(-1)).squeeze(-1)
        return self.linear_out(context.transpose(1, 2).flatten(2))

    def _weights(self, scores: Tensor, allowed: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        weights = torch.softmax(scores.masked_fill(~allowed, lowest), dim=-1)
        return self.dropout(weights.masked_fill(~allowed, 0.0))


def _windows(x: Tensor, axis: int, size: int) -> Tensor:
    """Windows of ``size`` along an axis, one for each of its starts; they are the last axis."""
    if not torch.jit.is_tracing():
        return x.unfold(axis, size, 1)
    count = x.shape[axis] - size + 1  # ONNX has no operator for windows of a free length
    return torch.stack([x.narrow(axis, k, count) for k in range(size)], -1)


class Merge(nn.Module):
    """Merges ``count`` tokens into one: their mean, a linear layer, a normalisation."""

    def __init__(self, width: int, count: int, expand: int):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, width * expand)
        self.norm = LayerNorm(width * expand)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Merge (batch, time, width) with a mask (batch, 1, time)."""
        missing = -x.shape[1] % self.count
        kept = F.pad(mask, (0, missing)).unflatten(2, (-1, self.count)).squeeze(1)
        x = F.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, self.count))
        weight = kept.unsqueeze(-1).to(x.dtype)
        mean = (x * weight).sum(2) / weight.sum(2).clamp(min=1.0)
        return self.norm(self.linear(mean)), kept.any(-1).unsqueeze(1)


class Stage(nn.Module):
    """A normalisation, then layers with one window."""

    def __init__(self, layers: Sequence[EncoderLayer], width: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform (batch, time, width) with a mask (batch, 1, time)."""
        x = self.norm(x)
        for layer in self.layers:
            x, _ = layer(x, mask)
        return x


class SpeechFormerEncoder(AbsEncoder):
    """Encoder ``speechformer``; defaults as in the paper's code, with 6 heads for 78 features.

    Args:
        input_size: features per frame.
        output_size: width of the first stage, reached by a linear layer; None: ``input_size``.
        attention_heads: heads of every layer.
        linear_units: of the feed-forward layers in the first stage; None: half its width.
        num_blocks: layers of the four stages.
        expand: factors by which the three merges multiply the width.
        hop_ms: time between two frames.
        dropout_rate: after attention and feed-forward layers, and inside the latter.
        attention_dropout_rate: of the attention weights.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int | None = None,
        attention_heads: int = 6,
        linear_units: int | None = None,
        num_blocks: Sequence[int] = (2, 2, 4, 4),
        expand: Sequence[int] = (1, 1, 1),
        hop_ms: float = 10.0,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
    ):
        """Build the encoder.

        Raises:
            UserError: the heads do not divide a width, or a list has another length.
        """
        super().__init__()
        if len(num_blocks) != 4 or len(expand) != 3:
            raise UserError("speechformer: num_blocks must be 4 numbers and expand 3")
        width = input_size if output_size is None else output_size
        if attention_heads < 1 or width % attention_heads:
            raise UserError(
                f"speechformer: attention_heads: {attention_heads} does not divide the width "
                f"{width}; choose one of {', '.join(map(str, _divisors(width)))}"
            )
        self.embed = None if output_size is None else nn.Linear(input_size, width)
        units = width // 2 if linear_units is None else linear_units
        stages, merges, frames = [], [], 1
        for index, blocks in enumerate(num_blocks):
            window = None
            if index < 3:
                window = max(1, int(WINDOWS_MS[index] / hop_ms) // frames)
            layers = [
                EncoderLayer(
                    width,
                    LocalAttention(
                        attention_heads, width, attention_dropout_rate, window, positions=index == 0
                    ),
                    PositionwiseFeedForward(width, units, dropout_rate),
                    dropout_rate,
                    normalize_before=False,
                )
                for _ in range(blocks)
            ]
            stages.append(Stage(layers, width))
            if index < 3:
                span = int(MERGES_MS[index] / hop_ms)
                merges.append(Merge(width, max(1, span // frames), expand[index]))
                width, units, frames = width * expand[index], units * expand[index], span
        self.encoders = nn.ModuleList(stages)
        self.merges = nn.ModuleList(merges)
        self._output_size = width
        for stage in self.encoders:
            for parameter in stage.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def output_size(self) -> int:
        """Return the features of a token of the last stage."""
        return self._output_size

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode (batch, frames, input_size); return (batch, seconds, width), lengths, None."""
        mask = ~make_pad_mask(ilens, maxlen=xs_pad.shape[1]).to(xs_pad.device).unsqueeze(1)
        x = xs_pad if self.embed is None else self.embed(xs_pad)
        for index, stage in enumerate(self.encoders):
            x = stage(x, mask)
            if index < len(self.merges):
                x, mask = self.merges[index](x, mask)
        return x, mask.squeeze(1).sum(1), None


def _divisors(width: int) -> list[int]:
    return [n for n in range(1, min(width, 16) + 1) if width % n == 0]
