"""ESPnet encoder ``frames``: the features as they are, for baselines that only pool them."""

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor


class FramesEncoder(AbsEncoder):
    """Encoder ``frames``, which has no parameters."""

    def __init__(self, input_size: int):
        super().__init__()
        self._size = input_size

    def output_size(self) -> int:
        """Features of a frame."""
        return self._size

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Return features (batch, frames, width) and lengths (batch,) as they are, and None."""
        return xs_pad, ilens, None
