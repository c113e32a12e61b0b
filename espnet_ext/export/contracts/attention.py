"""ESPnet's attention decoders: see ``traced.attention``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.folder import encode
from espnet_ext.export.contracts.compare import next_scores, relative_difference
from espnet_ext.export.contracts.traced import NAMES, TracedContract
from espnet_ext.export.runtime import run_onnx
from espnet_ext.export.traced import attention
from espnet_ext.export.whisper.model import END, PROMPT, START, TEXT, UNKNOWN
from espnet_ext.formats.packed import State

_STEPS = 12  # of the search that scores are compared in
_LONGEST = 30  # seconds of a segment


class AttentionContract(TracedContract):
    """The contract of an encoder of ESPnet with its Transformer decoder."""

    def __init__(self, bundle: Bundle, decoder: Decoder, stored: State, bits: int | None):
        """See ``contracts.kinds.contract_of``."""
        super().__init__(bundle, decoder, stored, bits)
        self.ids = attention.token_ids(decoder.model)

    trace = staticmethod(attention.write)

    def symbols(self) -> dict[int, str]:
        """Pieces of SentencePiece or characters, after the ids of the runtime."""
        tokens = self.decoder.model.token_list
        texts = [NAMES.get(tokens[n], tokens[n]) for n in self.ids[TEXT:]]
        named = {UNKNOWN: "<unk>", START: "<s>", END: "</s>"}
        return named | {TEXT + place: text for place, text in enumerate(texts)}

    def settings(self) -> dict[str, Any]:
        """Limits of the search: as ESPnet's, a token for each frame of the encoder."""
        seconds = 10
        wave = torch.zeros(seconds * self.decoder.rate)
        given = self.decoder.source.prepared(wave, self.decoder.width)
        with torch.no_grad():
            _, frames = self.decoder.model.encode(given[None], torch.tensor([len(given)]))
        rate = int(frames[0]) / seconds
        return {
            "kind": "attention",
            "sherpa_onnx": "from_moonshine",
            "tokens_per_second": rate,
            "more_tokens": 1,
            "most_tokens": round(rate * _LONGEST),
        }

    @torch.no_grad()
    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of log-probabilities along torch's texts."""
        asr, worst = self.decoder.model, 0.0
        chosen = torch.tensor(self.ids[TEXT:] + [asr.eos])
        places = [*range(TEXT, len(self.ids)), END]
        for wave in waves:
            given = self.decoder.source.prepared(torch.from_numpy(wave), self.decoder.width)
            encoded = encode(asr, given)
            step, token, text = next_scores(model, wave), PROMPT, torch.tensor([[asr.sos]])
            for _ in range(_STEPS):
                mask = torch.ones(1, text.shape[1], text.shape[1], dtype=torch.bool).tril()
                scores, _ = asr.decoder.forward_one_step(text, mask, encoded)
                wanted = scores[0, chosen].log_softmax(-1).numpy()
                found = torch.from_numpy(step(token)[places]).log_softmax(-1).numpy()
                worst = max(worst, relative_difference(found, wanted))
                best = int(wanted.argmax())
                token = places[best]
                if token == END:
                    break
                text = torch.cat([text, chosen[best].view(1, 1)], 1)
        return worst
