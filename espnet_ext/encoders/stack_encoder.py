"""ESPnet encoder ``stack``: a speech representation model under a head of ESPnet's."""

from collections.abc import Sequence

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_ext.encoders.stack import load_stack
from espnet_ext.errors import UserError


class StackEncoder(AbsEncoder):
    """Encoder ``stack``, for ``frontend: raw`` and no ``normalize``.

    A probe is a classifier (``recipe: {task: cls}``) with this encoder frozen and the head
    ``decoder: mlp``. The model's folder is read whenever the encoder is built; a checkpoint
    then brings the trained weights.
    """

    def __init__(
        self,
        input_size: int,
        path: str,
        frozen: bool = True,
        remove: Sequence[int] | None = None,
        keep: Sequence[int] | None = None,
        upto: int | None = None,
    ):
        """Load the model.

        Args:
            input_size: 1, what ``frontend: raw`` gives.
            path: of the model; see ``stack.load_stack``.
            frozen: train nothing of it; it also runs without dropout then.
            remove: layers to leave out.
            keep: layers to keep, the others are left out; not together with ``remove``.
            upto: read the output of the first ``upto`` of the layers left; None: of all.

        Raises:
            UserError: an option that does not fit the model, or what ``load_stack`` raises.
        """
        super().__init__()
        if input_size != 1:
            raise UserError("encoder: stack takes samples: choose frontend: raw and no normalize")
        if remove is not None and keep is not None:
            raise UserError("encoder: stack: give remove or keep, not both")
        stack = load_stack(path)
        if keep is not None:
            stack.remove(set(keep) - set(stack.kept))  # refuses layers that are none
            remove = sorted(set(stack.kept) - set(keep))
        self.stack = stack.remove(remove) if remove else stack
        if upto is not None and not 1 <= upto <= self.stack.num_layers:
            raise UserError(f"encoder: stack: upto: {upto} is not in 1..{self.stack.num_layers}")
        self.upto = upto
        self.frozen = frozen
        if frozen:
            self.stack.requires_grad_(False)

    @property
    def encoders(self) -> nn.ModuleList:
        """The layers, under the name that ESPnet's encoders have for them."""
        return self.stack.layers

    def output_size(self) -> int:
        """Features of a frame."""
        return self.stack.width

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode samples (batch, samples, 1); return (batch, frames, width), lengths, None."""
        if self.frozen:
            self.stack.eval()  # ESPnet's trainer has put all of the model into training mode
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x, lengths = self.stack.front(xs_pad.squeeze(-1), ilens)
            return self.stack.hidden(x, lengths, self.upto)[-1], lengths, None
