"""ESPnet's ASR model with a compressed CTC output, a nested family, or a usable transducer.

It replaces ESPnet's model under the name ``espnet``. With a stock encoder and any decoder but
``transducer`` it equals that model, and a deployed checkpoint loads into either.
"""

from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

from espnet_ext.data.tokenizer import spelled_with
from espnet_ext.encoders.compressed import compress_head
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_model import extend_to_model
from espnet_ext.methods.start import starts_from_plain
from espnet_ext.models.nested import Encoded, check_options, family_loss
from espnet_ext.models.transducer import use_transducer
from espnet_ext.models.whisper_decoder import WhisperDecoder

Loss = tuple[Tensor, dict[str, Any], Tensor]  # loss, statistics, weight, as ESPnet's trainer wants


class ASRModel(ESPnetASRModel):
    """ESPnetASRModel whose encoder may compress the classifier (site ``cls``) or be a family."""

    def __init__(self, joint_network: nn.Module | None = None, **conf: Any):
        decoder = conf["decoder"]
        super().__init__(joint_network=None, **conf)
        if isinstance(decoder, WhisperDecoder):
            self.sos, self.eos = decoder.use_tokens(self.token_list)
        if joint_network is not None:
            use_transducer(self, decoder, joint_network)
        if self.ctc is not None:
            compress_head(self.encoder, self.ctc.ctc_lo)
        self._encoded: Encoded | None = None
        extend_to_model(self, self._kept_tokens())
        check_options(self)
        starts_from_plain(self)

    def _kept_tokens(self) -> Tensor | None:
        """The tokens that a family's table keeps below 32 bits, (V,); None: all."""
        stack = nested_stack(self)
        if stack is None or stack.options.letters is None:
            return None
        return torch.tensor(spelled_with(self.token_list, stack.options.letters))

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> Encoded:
        """Encode as ESPnet does; inside ``loss_of``, return the given encoder output."""
        if self._encoded is not None:
            return self._encoded
        return super().encode(speech, speech_lengths)

    def loss_of(self, encoded: Encoded, batch: dict[str, Any]) -> Loss:
        """Return ESPnet's loss of a batch for a given encoder output."""
        self._encoded = encoded
        try:
            return super().forward(**batch)
        finally:
            self._encoded = None

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        **more: Any,
    ) -> Loss:
        """Return ESPnet's loss; for a family that of the step's members (``models.nested``)."""
        batch = {"speech": speech, "speech_lengths": speech_lengths}
        batch |= {"text": text, "text_lengths": text_lengths, **more}
        stack = nested_stack(self.encoder)
        if stack is None:
            return super().forward(**batch)
        return family_loss(self, stack, batch)
