"""The name and options of features that come from a self-supervised model, for ESPnet."""

from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet_ext.errors import UserError


class SSLFeatures(AbsFrontend):
    """Frontend ``ssl``: a layer of wav2vec 2.0, HuBERT or WavLM, written by stage 2 (``data.ssl``).

    The model is frozen, so its features are computed once for all trainings: with
    ``recipe: {features: ark}`` ESPnet builds no frontend, and this class has the options alone.
    """

    def __init__(self, folder: str, layer: int):
        """Refuse to be built: features of raw audio would cost the whole model in every epoch."""
        raise UserError("frontend: ssl needs recipe: features: ark; stage 2 writes its features")

    def output_size(self) -> int:
        """Features a frame: those of the arks."""
        raise NotImplementedError

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2 does this."""
        raise NotImplementedError
