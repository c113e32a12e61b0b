"""Utterance classification: a deeper head for ESPnet's classifier."""

import torch
from espnet2.cls.decoder.abs_decoder import AbsDecoder
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from torch import Tensor, nn

from espnet_ext.errors import UserError


class SeenNorm(nn.Module):
    """Normalisation by mean and deviation of everything that was seen in training.

    Batch normalisation fails here: ESPnet's batches are of utterances of one length. That length
    separates classes, and normalising each batch would remove it.
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, width: int):
        super().__init__()
        # Sums, so that averages of checkpoints are averages of what they have seen.
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("total", torch.zeros(width))
        self.register_buffer("squares", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, width)."""
        if self.training:
            with torch.no_grad():
                self.count += len(x)
                self.total += x.sum(0)
                self.squares += x.square().sum(0)
        mean = self.total / self.count
        variance = self.squares / self.count - mean.square()
        return (x - mean) / variance.clamp_min(1e-6).sqrt()


class MLPDecoder(AbsDecoder):
    """Decoder ``mlp``: the mean over frames, then linear layers with ReLU between them.

    The default is the head in SpeechFormer's code: widths d, d/2, d/4, classes, dropout 0.5. One
    layer on mean and deviation of ``encoder: frames`` is a logistic regression.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        num_layers: int = 3,
        dropout: float = 0.5,
        width: int | None = None,
        deviation: bool = False,
        input_norm: bool = False,
        input_dropout: float = 0.0,
    ):
        """Build the head: ``num_layers`` linear layers.

        Each but the last has ``width`` outputs; None: half as many as inputs.

        With ``deviation`` they see the standard deviation over frames as well as the mean, with
        ``input_norm`` normalised (``SeenNorm``). ``input_dropout`` is on what they see,
        ``dropout`` between them.
        """
        super().__init__()
        self.deviation = deviation
        encoder_output_size *= 2 if deviation else 1
        if num_layers < 1 or encoder_output_size >> (num_layers - 1) < 1:
            raise UserError(f"mlp: num_layers: {num_layers} does not fit {encoder_output_size}")
        inner = [width or encoder_output_size >> n for n in range(1, num_layers)]
        widths = [encoder_output_size, *inner, vocab_size]
        norm = SeenNorm(widths[0]) if input_norm else nn.Identity()
        self.inputs = nn.Sequential(norm, nn.Dropout(input_dropout))
        parts: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*parts[:-2])  # the last linear layer has no ReLU and dropout
        self.classes = vocab_size

    def forward(self, hs_pad: Tensor, hlens: Tensor) -> Tensor:
        """Return logits (batch, classes) for (batch, frames, width) and lengths."""
        kept = ~make_pad_mask(hlens, maxlen=hs_pad.shape[1]).to(hs_pad.device).unsqueeze(-1)
        mean = (hs_pad * kept).sum(1) / kept.sum(1)
        if not self.deviation:
            return self.layers(self.inputs(mean))
        squares = ((hs_pad - mean.unsqueeze(1)).square() * kept).sum(1) / kept.sum(1)
        # The gradient of a root has no bound at 0, which a single frame has.
        pooled = torch.cat([mean, (squares + 1e-8).sqrt()], 1)
        return self.layers(self.inputs(pooled))

    def score(self, ys: object, state: object, x: Tensor) -> tuple[Tensor, None]:
        """Return logits (classes,) for one utterance (frames, width), as ESPnet's heads do."""
        return self(x.unsqueeze(0), x.new_tensor([len(x)], dtype=int)).squeeze(0), None

    def output_size(self) -> int:
        """Number of classes."""
        return self.classes
