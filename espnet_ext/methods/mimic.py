"""Mimicking networks: a narrow network that replaces a range of Transformer layers.

"Rethinking Layer Redundancy" of speech representation models (arXiv 2409.16302): a mimic maps the
input of the range to its outputs, d to z to d. With one mimic the target is the last layer; with
two the first imitates a layer i inside the range, and the second, which follows it, the last
layer. In step 1 only the mimics are trained, on MSE(m_f(x), h_i) + MSE(m_g(m_f(x)), h_last); in
step 2 the model is trained on the task.

If the range starts at the first layer, x is the output of the feature projection, so the mimic
replaces the positions and the normalisation before the layers as well.

Not copied from the authors' code: two linear mimics that share one LayerNorm, a Transformer mimic
that attends across the batch, and drawing the first batch of a fresh shuffle at every step.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.errors import UserError
from espnet_ext.methods.options import POSITIVE, WHOLE, Number, Options, Positive, Whole
from espnet_ext.methods.tensors import frame_mask


class MimicOptions(Options):
    """Options of the mimics, as written under ``encoder_conf: {mimic: ...}``.

    Attributes:
        kind: ``linear`` (frame by frame) or ``transformer`` (attends over time).
        width: z, the inner width; of a Transformer that of its feed-forward layer.
        first: layers kept before the mimic; with 0 the whole stack is replaced.
        split: i, the layer that the first of two mimics imitates; None: one mimic.
        heads: of a Transformer mimic.
        dropout: of a Transformer mimic.
    """

    method = "mimic"
    kind: Literal["linear", "transformer"] = "linear"
    width: Positive = Field(64, description=POSITIVE)
    first: Whole = Field(0, description=WHOLE)
    split: int | None = Field(None, description="the number of a layer or null")
    heads: Positive = Field(8, description=POSITIVE)
    dropout: Number = Field(0.1, lt=1, description="from 0 to below 1")

    def targets(self, layers: int) -> tuple[int, ...]:
        """Return the numbers (from 1) of the layers to imitate in a stack of ``layers``.

        Raises:
            UserError: the range is empty, or ``split`` is not inside it.
        """
        if self.first >= layers:
            raise UserError(
                f"mimic: first: {self.first} keeps all of the {layers} layers; "
                f"choose 0 to {layers - 1}"
            )
        if self.split is None:
            return (layers,)
        if not self.first < self.split < layers:
            inside = f"{self.first + 1} to {layers - 1}" if self.first + 1 < layers else "none"
            raise UserError(
                f"mimic: split: layer {self.split} is not inside the replaced range, whose last "
                f"layer is {layers}; choose from: {inside}"
            )
        return (self.split, layers)


class LinearMimic(nn.Module):
    """m(x) = W_2 ReLU(LN(W_1 x + b_1)) + b_2 frame by frame; no residual, no positions."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.linear1 = nn.Linear(size, width)
        self.norm = nn.LayerNorm(width)
        self.linear2 = nn.Linear(width, size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (batch, frames, size) to the same shape; ``lengths`` are not used."""
        return self.linear2(torch.relu(self.norm(self.linear1(x))))


class TransformerMimic(nn.Module):
    """A standard post-norm encoder layer: attention, feed-forward of ``width`` with ReLU.

    Equal to torch's TransformerEncoderLayer with norm_first=False, batch_first=True, but written
    in plain products: torch's FLOP counter does not count the fused kernel.
    """

    def __init__(self, size: int, width: int, heads: int = 8, dropout: float = 0.1):
        """Build the layer.

        Raises:
            UserError: the heads do not divide ``size``.
        """
        super().__init__()
        if size % heads:
            raise UserError(f"mimic: heads: {heads} does not divide the width {size} of the stack")
        self.heads = heads
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)
        self.linear1 = nn.Linear(size, width)
        self.linear2 = nn.Linear(width, size)
        self.norm1 = nn.LayerNorm(size)
        self.norm2 = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (batch, frames, size) to the same shape; frames beyond ``lengths`` are masked."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )  # (batch, heads, frames, size / heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        padding = ~frame_mask(lengths, x.shape[1], x.device)
        scores = scores.masked_fill(padding[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = self.dropout(torch.softmax(scores, dim=-1)) @ v
        attended = self.linear_out(attended.transpose(1, 2).flatten(2))
        x = self.norm1(x + self.dropout(attended))
        inner = self.dropout(torch.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(inner)))


class MimicNetwork(nn.Module):
    """One mimic, or two in a row, which share no parameters."""

    def __init__(self, size: int, layers: int, options: MimicOptions):
        """Build the mimics of layers ``options.first`` + 1 to ``layers`` of a stack.

        Args:
            size: d, width of the stack.
            layers: of the whole stack.
            options: of the mimics.

        Raises:
            UserError: the options do not fit the stack.
        """
        super().__init__()
        self.options = options
        self.targets = options.targets(layers)
        self.parts = nn.ModuleList(
            LinearMimic(size, options.width)
            if options.kind == "linear"
            else TransformerMimic(size, options.width, options.heads, options.dropout)
            for _ in self.targets
        )

    def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return the outputs of the mimics (batch, frames, d): for h_i and h_last, or h_last."""
        outputs = []
        for part in self.parts:
            x = part(x, lengths)
            outputs.append(x)
        return outputs


def masked_mse(found: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared error over the frames of the utterances, without their padding."""
    mask = frame_mask(lengths, found.shape[1], found.device)
    return F.mse_loss(found[mask], target[mask])


def mimic_loss(found: Sequence[Tensor], targets: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """Loss of step 1: the sum over the mimics of their mean squared errors."""
    pairs = zip(found, targets, strict=True)
    return torch.stack([masked_mse(f, t, lengths) for f, t in pairs]).sum()
