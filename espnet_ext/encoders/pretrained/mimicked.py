"""A stack whose last layers are replaced by a mimicking network (arXiv 2409.16302)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from espnet_ext.encoders.pretrained.stack import Stack
from espnet_ext.errors import UserError
from espnet_ext.formats.state_dict import compare_state
from espnet_ext.methods.mimic import MimicNetwork, MimicOptions


class MimicConf(MimicOptions):
    """The section ``encoder_conf: {mimic: ...}``: the network's options and two of the encoder.

    Attributes:
        frozen: train nothing of the mimics.
        path: of the mimics that step 1 trained; None: random weights.
    """

    frozen: bool = Field(False, description="true or false")
    path: str | None = Field(None, description="a path or null")


def parse_mimic(conf: Any) -> MimicOptions:
    """Return the network's options in ``encoder_conf: {mimic: ...}``.

    Raises:
        UserError: an option is unknown or has a wrong value.
    """
    section = MimicConf.parse(conf)
    return MimicOptions(**{name: getattr(section, name) for name in MimicOptions.model_fields})


class MimickedStack(nn.Module):
    """The front end, the first layers if any, then the mimics.

    The module does not contain what the mimics replace: the last layers and the norm after them;
    and if no layer is kept, the positions and the norm before the first one.
    """

    def __init__(self, stack: Stack, options: MimicOptions):
        """Build mimics with random weights for ``stack``, whose tensors are shared.

        Raises:
            UserError: the options name layers that the stack lacks.
        """
        super().__init__()
        self.mimic = MimicNetwork(stack.width, stack.num_layers, options)
        self.width = stack.width
        self.first = options.first
        # ``remove`` must leave a layer, so with first: 0 ``drop_mimicked`` drops it.
        self.stack = stack.remove(stack.kept[max(1, self.first) :])
        self.stack.drop_mimicked(entrance=self.first == 0)

    def start(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the first mimic, (batch, time, width), and frames (batch,)."""
        x, lengths = self.stack.front(speech, lengths)
        return self.before(x, lengths)[-1], lengths

    def before(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """From the output of the front end, return those up to the input of the first mimic."""
        if self.first == 0:
            return [x]
        return self.stack.states(x, lengths, finished=False)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the last mimic, (batch, time, width), and frames (batch,)."""
        x, lengths = self.start(speech, lengths)
        return self.mimic(x, lengths)[-1], lengths

    def load(self, path: Path) -> None:
        """Load the mimics that step 1 trained.

        Raises:
            UserError: the file is missing or damaged, or of other options or another stack.
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


def mimic_activations(
    stack: Stack, speech: Tensor, lengths: Tensor, first: int, targets: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Return input and targets of mimics, (batch, time, width) each, and frames (batch,).

    Args:
        stack: the whole stack, in evaluation mode.
        speech: (batch, samples); ``lengths`` are samples (batch,).
        first: layers before the mimics; the first result is their output, with 0 that of ``front``.
        targets: numbers of layers, from 1, whose outputs follow.
    """
    x, lengths = stack.front(speech, lengths)
    outputs = [x, *stack.hidden(x, lengths, max(targets))]
    return [outputs[number] for number in (first, *targets)], lengths
