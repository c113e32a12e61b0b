"""Whisper: see ``whisper.moonshine`` and ``whisper.offset``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.compare import next_scores, relative_difference
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.runtime import run_onnx
from espnet_ext.export.whisper import moonshine, offset
from espnet_ext.export.whisper.model import END, START, TEXT, UNKNOWN
from espnet_ext.export.whisper.source import read_whisper, symbols
from espnet_ext.formats.packed import State
from espnet_ext.models.whisper_decoder import MORE_TOKENS

_BLANK = "\u2581"  # of a language, which is no text
_STEPS = 12  # of the search that scores are compared in


class WhisperContract:
    """The contract of a Whisper, encoder and decoder."""

    def __init__(self, bundle: Bundle, decoder: Decoder, stored: State, bits: int | None):
        """See ``contracts.kinds.contract_of``."""
        self.decoder = decoder
        self.model = read_whisper(bundle.path, decoder, stored, bits)

    def write(self, folder: Path, products: Products) -> dict[int, int]:
        """Write the four graphs."""
        return moonshine.write(self.model, folder, products)

    def symbols(self) -> dict[int, str]:
        """Texts of byte-level tokens, after the ids of the runtime; the prompt has none."""
        texts = symbols(self.decoder.model.token_list, self.model.rows)
        named = {UNKNOWN: "<unk>", START: "<s>", END: "</s>"}
        texts += [_BLANK] * len(self.model.languages)
        return named | {TEXT + place: text for place, text in enumerate(texts)}

    def settings(self) -> dict[str, Any]:
        """Limits of the search."""
        room = self.decoder.model.decoder.decoder.max_target_positions - len(self.model.prompt)
        names = self.decoder.model.token_list
        prompt = [names[token] for token in self.model.prompt]
        detected = {}
        if self.model.languages:
            prompt[1] = "<|language|>"
            codes = [names[token].strip("<|>") for token in self.model.languages]
            detected = {"languages": codes, "first_language": self.model.first_language}
        return {
            "kind": "whisper",
            "sherpa_onnx": "from_moonshine",
            "prompt": prompt,
            **detected,
            "tokens_per_second": self.decoder.tokens_per_second,
            "more_tokens": MORE_TOKENS,
            "most_tokens": room,
        }

    @torch.no_grad()
    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of scores along torch's texts."""
        asr = self.decoder.model
        rows = self.model.rows
        ids = [run_onnx.END, *range(run_onnx.TEXT, run_onnx.TEXT + len(rows))]
        chosen = torch.tensor([self.model.end, *rows])
        worst = 0.0
        for wave in waves:
            encoded, frames = asr.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
            inside = torch.ones(1, int(frames), dtype=torch.bool)
            step, token, past = next_scores(model, wave), run_onnx.PROMPT, None
            tokens = asr.decoder.prompts(encoded, inside)
            if languages := list(self.model.languages):
                wanted, _ = asr.decoder.step(tokens[:, :1], encoded, None, None)
                found = step(token)[self.model.first_language :]
                worst = max(worst, relative_difference(found, wanted[0, languages].numpy()))
                token = self.model.first_language + languages.index(int(tokens[0, 1]))
            for _ in range(_STEPS):
                wanted, past = asr.decoder.step(tokens, encoded, None, past)
                theirs, found = wanted[0, chosen].numpy(), step(token)[ids]
                worst = max(worst, relative_difference(found, theirs))
                best = int(theirs.argmax())
                token, tokens = ids[best], chosen[best].view(1, 1)
                if token == run_onnx.END:
                    break
        return worst


class OffsetContract(WhisperContract):
    """The contract of a Whisper in the layout of ``from_whisper``."""

    def __init__(self, bundle: Bundle, decoder: Decoder, stored: State, bits: int | None):
        """See ``contracts.kinds.contract_of``."""
        super().__init__(bundle, decoder, stored, bits)
        if self.model.languages:
            raise UserError("--layout from_whisper detects no language: give --language")
        self.texts = offset.texts_of(decoder.model.token_list, self.model.rows)

    def write(self, folder: Path, products: Products) -> dict[int, int]:
        """Write the three graphs."""
        places = self.decoder.model.decoder.decoder.max_target_positions
        return offset.write(self.model, folder, products, self.texts, places)

    def symbols(self) -> dict[int, str]:
        """Bytes of the texts, whose ids are the first."""
        return dict(enumerate(offset.lines(self.texts)))

    def settings(self) -> dict[str, Any]:
        """Limits of the search."""
        layout = {"kind": "whisper_offset", "sherpa_onnx": "from_whisper"}
        return super().settings() | layout | {"layers": self.model.layers[1]}
