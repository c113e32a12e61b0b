"""ESPnet's ASR model with a compressed CTC output, a nested family, or a usable transducer.

It replaces ESPnet's model under the name ``espnet``. With a stock encoder and any decoder but
``transducer`` it equals that model, and a deployed checkpoint loads into either.
"""

from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

from espnet_ext.data.tokenizer import is_name, read_common, spelled_with
from espnet_ext.encoders.compressed import compress_head
from espnet_ext.methods.codes import token_frequencies
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_model import extend_to_model
from espnet_ext.methods.nested_table import TableTokens
from espnet_ext.methods.start import starts_from_plain
from espnet_ext.models.nested import Encoded, check_options, family_loss
from espnet_ext.models.teacher import Teacher
from espnet_ext.models.transducer import use_transducer
from espnet_ext.models.whisper_decoder import WhisperDecoder

Loss = tuple[Tensor, dict[str, Any], Tensor]  # loss, statistics, weight, as ESPnet's trainer wants


class ASRModel(ESPnetASRModel):
    """ESPnetASRModel whose encoder may compress the classifier (site ``cls``) or be a family."""

    def __init__(
        self,
        joint_network: nn.Module | None = None,
        teacher: str | None = None,
        teacher_weight: float = 1.0,
        **conf: Any,
    ):
        """Build the model of ESPnet's options.

        Args:
            joint_network: of a transducer.
            teacher: folder of a pretrained encoder whose outputs the encoder learns, too; stage 4
                sets it from ``recipe: teacher``.
            teacher_weight: of that loss.
            conf: ESPnet's arguments.
        """
        decoder = conf["decoder"]
        super().__init__(joint_network=None, **conf)
        if isinstance(decoder, WhisperDecoder):
            self.sos, self.eos = decoder.use_tokens(self.token_list)
        if joint_network is not None:
            use_transducer(self, decoder, joint_network)
        if self.ctc is not None:
            compress_head(self.encoder, self.ctc.ctc_lo)
        self._encoded: Encoded | None = None
        extend_to_model(self, self._table_tokens())
        check_options(self)
        starts_from_plain(self)
        self.teacher: Teacher | None = None
        self.teacher_weight = teacher_weight
        if teacher is not None:
            self.teacher = Teacher(teacher, self.encoder.output_size())

    def _table_tokens(self) -> TableTokens:
        """Which rows the tokens of a family's table have below 32 bits."""
        stack = nested_stack(self)
        if stack is None:
            return TableTokens()
        options = stack.options
        letters, common, frequent = options.letters, options.common, options.frequent
        kept = mask = None
        if letters is not None:
            kept = torch.tensor(spelled_with(self.token_list, letters))
        if common is not None or frequent:
            found = set(read_common(Path(common))) if common is not None else set()
            names = enumerate(self.token_list)
            mask = torch.tensor([k < frequent or token in found for k, token in names])
        return TableTokens(kept, mask, self._frequencies())

    def _frequencies(self) -> Tensor:
        """How frequent the tokens are, up to a factor: every text has a beginning and an end."""
        found = token_frequencies(torch.arange(len(self.token_list)))
        found[torch.tensor([is_name(token) for token in self.token_list])] = found.max()
        found[[self.sos, self.eos]] = 1.0
        return found

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
        if stack is not None:
            return family_loss(self, stack, batch)
        if self.teacher is None:
            return super().forward(**batch)
        encoded = self.encode(speech, speech_lengths)
        loss, stats, weight = self.loss_of(encoded, batch)
        output = encoded[0][0] if isinstance(encoded[0], tuple) else encoded[0]
        taught = self.teacher.loss(output, encoded[1], speech, speech_lengths)
        loss = loss + self.teacher_weight * taught
        return loss, {**stats, "loss": loss.detach(), "loss_teacher": taught.detach()}, weight
