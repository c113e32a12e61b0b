"""Streaming transducers: see ``traced.transducer``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_ext.config.decoding import TRANSDUCER
from espnet_ext.data.features import NEMO, SUBSAMPLING
from espnet_ext.export.contracts.compare import relative_difference
from espnet_ext.export.contracts.traced import NAMES, TracedContract
from espnet_ext.export.runtime import run_onnx
from espnet_ext.export.traced import transducer

_RATE = 16000
_TOKENS = 8  # in a row, by which predictor and joiner are compared


class TransducerContract(TracedContract):
    """The contract of a model that decodes chunk by chunk."""

    method = TRANSDUCER[0]
    trace = staticmethod(transducer.write)

    def symbols(self) -> dict[int, str]:
        """Pieces of SentencePiece or characters; the blank is the last."""
        blank, *tokens = self.decoder.model.token_list
        return {place: NAMES.get(token, token) for place, token in enumerate([*tokens, blank])}

    def settings(self) -> dict[str, Any]:
        """``kind``, sizes in frames and samples, and the contract's name in sherpa-onnx."""
        geometry, source = self.decoder.model.encoder.geometry, self.decoder.source
        found = {
            "kind": "transducer",
            "bins": self.decoder.width,
            "window": geometry.block * SUBSAMPLING,
            "shift": geometry.chunk * SUBSAMPLING,
            "features": source.definition,
        }
        # sherpa-onnx computes no others for such a model, up to 8,000 Hz.
        runs = source.definition == NEMO and source.rate == _RATE
        return found | ({"sherpa_onnx": "from_transducer"} if runs else {})

    @torch.no_grad()
    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of the encoder's outputs, and of scores after some tokens."""
        asr, worst = self.decoder.model, 0.0
        for wave in waves:
            given = self.decoder.source.prepared(torch.from_numpy(wave), self.decoder.width)[None]
            length = torch.tensor([given.shape[1]])
            if asr.normalize is not None:
                given, _ = asr.normalize(given, length)
            encoded, *_ = asr.encoder(given, length)
            wanted = asr.joint_network.lin_enc(encoded)[0].numpy()
            found = run_onnx.Stream(model).encode(wave, last=True)
            worst = max(worst, relative_difference(found, wanted))
            worst = max(worst, self._scores(model, wanted[-1:]))
        return worst

    def _scores(self, model: run_onnx.Model, frame: np.ndarray) -> float:
        """The largest difference of scores of one frame (1, J) after each of some tokens."""
        asr, worst = self.decoder.model, 0.0
        stream, count = run_onnx.Stream(model), len(asr.token_list)
        state = asr.decoder.init_state(1)
        for place, token in enumerate([0, *np.random.default_rng(0).integers(1, count, _TOKENS)]):
            label = torch.tensor([[int(token)]])
            out, state = asr.decoder.rnn_forward(asr.decoder.embed(label), state)
            predicted = asr.joint_network.lin_dec(out[0])
            wanted = asr.joint_network(torch.from_numpy(frame), predicted, no_projection=True)
            if place:  # a stream begins with the blank
                stream.feed((int(token) - 1) % count)
            found = np.roll(stream.scores(frame[0]), 1)
            worst = max(worst, relative_difference(found, wanted[0].numpy()))
        return worst
