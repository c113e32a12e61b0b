"""A stack whose last layers a mimicking network stands for (arXiv 2409.16302)."""

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from espnet_ext.encoders.pretrained.espnet import ESPnetStack
from espnet_ext.encoders.pretrained.stack import Stack
from espnet_ext.encoders.pretrained.transformers import Wav2Vec2Stack, WhisperStack
from espnet_ext.errors import UserError
from espnet_ext.formats.state_dict import compare_state
from espnet_ext.methods.mimic import MimicNetwork, MimicOptions


class MimicConf(MimicOptions):
    """The section ``encoder_conf: {mimic: ...}``: the network's options and two of the encoder."""

    frozen: bool = Field(False, description="true or false")
    path: str | None = Field(None, description="a path or null")


def parse_mimic(conf: Any) -> MimicOptions:
    """Build the options from ``encoder_conf: mimic:``; its ``frozen`` and ``path`` are not theirs.

    Raises:
        UserError: an option is unknown or has a wrong value.
    """
    checked = MimicConf.parse(conf)
    return MimicOptions(**{name: getattr(checked, name) for name in MimicOptions.model_fields})


class MimickedStack(nn.Module):
    """The front end, the first layers if any, then the mimics.

    What they replace is not in the module any more: neither its layers nor the norm that follows
    them; nor, where no layer is kept, the positions and the norm in front of the first.
    """

    def __init__(self, stack: Stack, options: MimicOptions):
        """Build mimics with random weights for ``stack``, whose tensors are shared.

        Raises:
            UserError: the options name layers that the stack has not.
        """
        super().__init__()
        self.mimic = MimicNetwork(stack.width, stack.num_layers, options)
        self.width = stack.width
        self.first = options.first
        # At least one stays here, since ``remove`` leaves one: ``strip`` takes that too.
        self.stack = stack.remove(stack.kept[max(1, self.first) :])
        strip(self.stack, self.first == 0)

    def start(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the first mimic sees, (batch, time, width), and frames (batch,)."""
        x, lengths = self.stack.front(speech, lengths)
        return self.before(x, lengths), lengths

    def before(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same from the front end's output."""
        if self.first == 0:
            return x
        return self.stack.run(self.stack.enter(x, lengths), lengths, finished=False)[-1]

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the last layer, (batch, time, width), and frames (batch,)."""
        x, lengths = self.start(speech, lengths)
        return self.mimic(x, lengths)[-1], lengths

    def load(self, path: Path) -> None:
        """Load the mimics that step 1 trained.

        Raises:
            UserError: there is none, or it is damaged, or of other options or another stack.
        """
        if not path.is_file():
            raise UserError(f"no mimic {path}; run espnet-ext mimic CONFIG")
        try:
            state = load_file(path)
        except SafetensorError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is damaged ({reason}); remove it and run mimic") from None
        compare_state(self.mimic, state, path)
        self.mimic.load_state_dict(state)


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
    if whole:
        stack._keep([])
    if hasattr(stack.encoder, "after_norm"):
        stack.encoder.after_norm = nn.Identity()


@singledispatch
def stack_parts(stack: Stack) -> list[nn.Module]:
    """The modules behind ``front``: positions, norms and layers; what mimics can replace."""
    raise NotImplementedError(type(stack).__name__)


@stack_parts.register
def _(stack: Wav2Vec2Stack) -> list[nn.Module]:
    return [stack.model.encoder]


@stack_parts.register
def _(stack: WhisperStack) -> list[nn.Module]:
    return [stack.model.embed_positions, stack.model.layers, stack.model.layer_norm]


@stack_parts.register
def _(stack: ESPnetStack) -> list[nn.Module]:
    after = getattr(stack.encoder, "after_norm", None)
    return [stack.positions, stack.layers, *([] if after is None else [after])]
