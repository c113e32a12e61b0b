"""ESPnet's ASR model: the method on the CTC output, the loss of a family, a transducer that runs.

Takes the place of ESPnet's own under the name ``espnet``: for a stock encoder and another
decoder than ``transducer`` it is that very model, and a deployed checkpoint loads into either.
"""

from typing import Any

from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

from espnet_ext.methods.nested import nested_stack
from espnet_ext.models.nested import family_loss, refuse_unusable
from espnet_ext.models.transducer import use_transducer


class ASRModel(ESPnetASRModel):
    """ESPnetASRModel whose encoder may claim the classifier (site ``cls``) or be a family."""

    def __init__(self, joint_network: nn.Module | None = None, **conf: Any):
        decoder = conf["decoder"]
        super().__init__(joint_network=None, **conf)
        if joint_network is not None:
            use_transducer(self, decoder, joint_network)
        compress_head = getattr(self.encoder, "compress_head", None)
        if compress_head is not None and self.ctc is not None:
            compress_head(self.ctc.ctc_lo)
        self.encoded: tuple[Tensor, Tensor] | None = None
        refuse_unusable(self)

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As ESPnet's; while a family is trained, the output of the member whose turn it is."""
        return super().encode(speech, speech_lengths) if self.encoded is None else self.encoded

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        **more: Any,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """As ESPnet's; of a family the loss of all members of the step (``models.nested``)."""
        batch = {"speech": speech, "speech_lengths": speech_lengths}
        batch |= {"text": text, "text_lengths": text_lengths, **more}
        stack = nested_stack(self.encoder)
        if stack is None:
            return super().forward(**batch)
        return family_loss(self, stack, super().forward, batch)
