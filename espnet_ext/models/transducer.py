"""The transducer's predictor and loss; the joiner is ESPnet's ``JointNetwork``.

ESPnet's loss needs ``warprnnt_pytorch``, which no package registry has.
"""

from typing import Any

import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import rnnt_loss

from espnet_ext.errors import UserError


class Predictor(TransducerDecoder):
    """ESPnet's decoder ``transducer`` with a separate width ``embed_size`` of the embedding.

    ResidualTransformer (arXiv 2310.02489, section 3) embeds tokens in 320 numbers before an
    LSTM of 1,024. ESPnet's decoder has one width for both, which is the default here.
    """

    def __init__(
        self,
        vocab_size: int,
        rnn_type: str = "lstm",
        num_layers: int = 1,
        hidden_size: int = 320,
        dropout: float = 0.0,
        dropout_embed: float = 0.0,
        embed_pad: int = 0,
        embed_size: int | None = None,
    ):
        for name, value in (("num_layers", num_layers), ("hidden_size", hidden_size)):
            if value < 1:
                raise UserError(f"decoder_conf: {name} must be at least 1, not {value}")
        super().__init__(
            vocab_size, rnn_type, num_layers, hidden_size, dropout, dropout_embed, embed_pad
        )
        if embed_size not in (None, hidden_size):
            self.embed = nn.Embedding(vocab_size, embed_size, padding_idx=embed_pad)
            self.decoder[0] = type(self.decoder[0])(embed_size, hidden_size, 1, batch_first=True)


class TransducerLoss(nn.Module):
    """Negative log-likelihood of the labels over all alignments (Graves, arXiv 1211.3711).

    Computed by torchaudio, always in float32: under autocast the joiner's output is bfloat16, in
    which sums over thousands of alignments are meaningless.
    """

    def __init__(self, blank: int):
        super().__init__()
        self.blank = blank

    def forward(self, logits: Tensor, labels: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean over the batch.

        Args:
            logits: (B, T, U + 1, V), not normalised.
            labels: (B, U) without blanks.
            frames: (B,) frames of each utterance.
            tokens: (B,) labels of each utterance.
        """
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.float().log_softmax(-1)
            # An alignment uses two of the V scores of a cell: blank and the next label. Given only
            # these, torchaudio computes the same sum in a sixth of the time.
            following = F.pad(labels.long(), (0, 1))[:, None, :, None]
            following = following.expand(-1, scores.shape[1], -1, -1)
            blank_and_label = [scores[..., self.blank, None], scores.gather(3, following)]
            return rnnt_loss(
                torch.cat(blank_and_label, dim=3),
                torch.ones_like(labels, dtype=torch.int),
                frames.int(),
                tokens.int(),
                blank=0,
                fused_log_softmax=False,
            )


def use_transducer(model: Any, decoder: nn.Module, joint_network: nn.Module) -> None:
    """Turn an ``ESPnetASRModel`` that was built without a joiner into a transducer, in place.

    Given the joiner, its constructor would import warprnnt_pytorch. Set here is what its
    ``forward`` and ESPnet's inference read.
    """
    from espnet2.asr.transducer.error_calculator import ErrorCalculatorTransducer

    calculator, model.error_calculator = getattr(model, "error_calculator", None), None
    del model.criterion_att
    model.decoder, model.joint_network = decoder, joint_network
    model.use_transducer_decoder = True
    model.criterion_transducer = TransducerLoss(model.blank_id)
    model.error_calculator_trans = None
    if calculator is not None:
        model.error_calculator_trans = ErrorCalculatorTransducer(
            decoder,
            joint_network,
            model.token_list,
            calculator.space,
            calculator.blank,
            report_cer=calculator.report_cer,
            report_wer=calculator.report_wer,
        )
