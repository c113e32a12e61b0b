"""The layers of a recogniser's decoder: compared on given texts, and removed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.encoders.pretrained.stack import check_layers

# For names of utterances and their waves (samples,): by layer and utterance (steps, width).
type Outputs = Callable[[Sequence[str], Sequence[Tensor]], list[list[Tensor]]]


class DecoderLayers:
    """The layers of ``decoder: whisper``, with what ``Stack`` tells of those of an encoder."""

    family = "whisper decoder"

    def __init__(self, recogniser: Decoder):
        self.decoder: Any = recogniser.model.decoder.decoder
        self.layers: nn.ModuleList = self.decoder.layers
        self.kept = tuple(range(len(self.layers)))
        self.protected: dict[int, str] = {}

    @property
    def num_layers(self) -> int:
        """Layers that are left."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Features of a layer's output."""
        return self.decoder.config.d_model

    def remove(self, layers: Sequence[int]) -> "DecoderLayers":
        """The same without some layers, numbered as in the whole decoder; tensors are shared.

        Raises:
            UserError: a layer does not exist, or none would be left.
        """
        removed = check_layers(self, layers)
        smaller = object.__new__(DecoderLayers)
        smaller.decoder, smaller.protected = self.decoder, self.protected
        left = [place for place, index in enumerate(self.kept) if index not in removed]
        smaller.kept = tuple(self.kept[place] for place in left)
        smaller.layers = nn.ModuleList(self.layers[place] for place in left)
        return smaller


def teacher_forced(recogniser: Decoder, texts: Mapping[str, str]) -> Outputs:
    """Outputs of the decoder's layers while it reads the texts of utterances.

    Args:
        recogniser: a deployed model with ``decoder: whisper``.
        texts: by utterance.

    Returns:
        For names and waves, by layer and utterance, outputs (tokens + 1, width): one for each
        token that is predicted, the end of the text included. As of an encoder, those of the last
        layer have passed the final norm.
    """
    model = recogniser.model
    decoder = model.decoder.decoder
    tokenizer, converter = recogniser.inference.tokenizer, recogniser.inference.converter

    def outputs(names: Sequence[str], waves: Sequence[Tensor]) -> list[list[Tensor]]:
        words = [tokenizer.text2tokens(texts.get(name, "")) for name in names]
        read = [torch.tensor([model.sos, *converter.tokens2ids(text)]) for text in words]
        counts = [len(one) for one in read]
        lengths = torch.tensor([len(wave) for wave in waves])
        encoded, frames = model.encode(pad_sequence(list(waves), batch_first=True), lengths)
        found: list[Tensor] = []
        modules = [*decoder.layers[:-1], decoder.layer_norm]
        hooks = [m.register_forward_hook(lambda _, __, h: found.append(h)) for m in modules]
        try:
            model.decoder(encoded, frames, pad_sequence(read, True), torch.tensor(counts))
        finally:
            for hook in hooks:
                hook.remove()
        first = len(model.decoder.prompt) - 1
        steps = [(row, first, first + count) for row, count in enumerate(counts)]
        return [[h[row, start:end] for row, start, end in steps] for h in found]

    return outputs
