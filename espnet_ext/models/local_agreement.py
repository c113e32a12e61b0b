"""The first pass of streaming with a Whisper decoder: greedy search with local agreement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from espnet_ext.encoders.chunks import Geometry
from espnet_ext.encoders.pretrained.chunk_mask import FRAME_MS, complete_frames, streaming_mode
from espnet_ext.errors import UserError
from espnet_ext.models.attention_search import attention_greedy
from espnet_ext.models.whisper_decoder import FRAMES, WhisperDecoder


@dataclass(frozen=True)
class Heard:
    """Tokens that the first pass found in a segment so far."""

    tokens: tuple[int, ...] = ()
    certain: int = 0  # of the tokens, those at the beginning that do not change any more
    frames: int = 0  # that were searched


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning of both are the same."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class FirstPass:
    """Greedy search over the frames of whole chunks.

    Raises:
        UserError: the model has no chunks, or another decoder.
    """

    def __init__(self, model: Any, tokens_per_second: float):
        stack: Any = getattr(model.encoder, "base", None)
        chunks = getattr(stack, "chunks", None)
        if chunks is None or not isinstance(model.decoder, WhisperDecoder):
            raise UserError(
                "this model cannot stream: train a streaming_transformer, or a whisper with "
                "encoder_conf: chunks"
            )
        self.model, self.chunks, self.rate = model, chunks, tokens_per_second

    @property
    def geometry(self) -> Geometry:
        """Chunk and history."""
        return self.chunks.geometry

    def piece(self, rate: int) -> int:
        """Samples of a chunk at ``rate`` Hz."""
        return self.geometry.chunk * FRAME_MS * rate // 1000

    @torch.no_grad()
    def advance(self, wave: np.ndarray, heard: Heard, last: bool = False) -> Heard:
        """Search over a segment so far.

        Args:
            wave: all its samples (samples,).
            heard: what the last search found.
            last: no more will follow: use the frames of an incomplete chunk too.
        """
        ready = complete_frames(len(wave), self.geometry)
        if not last and ready <= heard.frames:
            return heard
        speech, samples = torch.from_numpy(wave).unsqueeze(0), torch.tensor([len(wave)])
        with streaming_mode(self.chunks):
            encoded, frames = self.model.encode(speech, samples)
        if not last:
            encoded, frames = encoded[:, :ready], frames.clamp(max=ready)
        known = heard.tokens[: heard.certain]
        most = self.model.decoder.most_tokens(int(frames) / FRAMES, self.rate)
        (found,) = attention_greedy(
            self.model.decoder, encoded, frames, [max(most, len(known))], known
        )
        return Heard(tuple(found), common_prefix(found, heard.tokens), int(frames))

    def text(self, wave: np.ndarray, rate: int) -> tuple[int, ...]:
        """Tokens of the first pass at the end of an utterance (samples,), heard chunk by chunk."""
        step, heard = self.piece(rate), Heard()
        for end in range(step, len(wave), step):
            heard = self.advance(wave[:end], heard)
        return self.advance(wave, heard, last=True).tokens
