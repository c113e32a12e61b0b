"""A stack whose last layers a mimicking network stands for (arXiv 2409.16302)."""

from collections.abc import Sequence
from functools import singledispatch

from torch import Tensor, nn

from espnet_ext.encoders.stack import Stack
from espnet_ext.encoders.stack_espnet import ESPnetStack
from espnet_ext.encoders.stack_transformers import Wav2Vec2Stack, WhisperStack
from espnet_ext.methods.mimic import MimicNetwork, MimicOptions


class MimickedStack(nn.Module):
    """The front end, the first layers if any, then the mimics.

    What they replace is not in the module any more: neither its layers nor the norm that follows
    them; nor, where no layer is kept, the positions and the norm in front of the first.
    """

    def __init__(self, stack: Stack, options: MimicOptions):
        """Take over ``stack`` (its tensors are shared, what is replaced is dropped).

        Raises:
            UserError: the options name layers that the stack has not.
        """
        super().__init__()
        self.mimic = MimicNetwork(stack.width, stack.num_layers, options)
        self.width = stack.width
        self.first = options.first
        gone = [index for place, index in enumerate(stack.kept) if place >= max(1, self.first)]
        self.stack = stack.remove(gone) if gone else stack
        strip(self.stack, self.first == 0)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the last layer, (batch, time, width), and frames (batch,)."""
        x, lengths = self.stack.front(speech, lengths)
        if self.first:
            h = self.stack.enter(x, lengths)
            x = before_finish(self.stack, h, lengths)
        return self.mimic(x, lengths)[-1], lengths


def before_finish(stack: Stack, h: Tensor, lengths: Tensor) -> Tensor:
    """Output of the last layer of ``stack`` without the norm that would follow it."""
    context = stack._context(h, lengths)
    for layer in stack.layers:
        h = stack._step(layer, h, context)
    return h


def taps(
    stack: Stack, speech: Tensor, lengths: Tensor, first: int, targets: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """What mimics see and shall give: (batch, time, width) each, and frames (batch,).

    Args:
        stack: the whole stack, in evaluation mode.
        speech: (batch, samples); ``lengths`` are samples (batch,).
        first: layers in front of the mimics; their output comes first, with 0 that of ``front``.
        targets: numbers of layers, from 1; the outputs of these follow.
    """
    x, lengths = stack.front(speech, lengths)
    outputs = [x, *stack.hidden(x, lengths, max(targets))]
    return [outputs[number] for number in (first, *targets)], lengths


@singledispatch
def strip(stack: Stack, whole: bool) -> None:
    """Drop what mimics replace beside layers: the norm after them, with ``whole`` all of them.

    With ``whole`` the entrance (positions, norm) and every layer that is left go too.
    """
    raise NotImplementedError(type(stack).__name__)


@strip.register
def _(stack: Wav2Vec2Stack, whole: bool) -> None:
    encoder = stack.model.encoder
    stack.model.masked_spec_embed = None  # of pre-training
    if whole:
        encoder.layers = nn.ModuleList()
        encoder.pos_conv_embed = nn.Identity()
    if whole or stack.pre_norm:
        encoder.layer_norm = nn.Identity()


@strip.register
def _(stack: WhisperStack, whole: bool) -> None:
    model = stack.model
    if whole:
        model.layers = nn.ModuleList()
        model.embed_positions = nn.Identity()
    model.layer_norm = nn.Identity()


@strip.register
def _(stack: ESPnetStack, whole: bool) -> None:
    encoder = stack.encoder
    if whole:
        stack._keep([])
    if hasattr(encoder, "after_norm"):
        encoder.after_norm = nn.Identity()
