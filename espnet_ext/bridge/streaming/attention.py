"""Streaming with an attention decoder: a first pass while one speaks, a second one at pauses.

The encoder attends within chunks (``encoder_conf: chunks``), so what is heard later does not change
the frames of earlier chunks. With every chunk a greedy search runs over the frames of the segment
so far; tokens on which two searches in a row agree are certain, and later searches begin with them
(local agreement, arXiv 2005.11185). Where the speaker pauses, or after 25 s, the segment ends: the
second pass searches once more over all of it, without what was certain.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.streaming.latency import Timing, doubts, refuse_short
from espnet_ext.bridge.streaming.text_segments import Partial
from espnet_ext.config.decoding import ATTENTION_GREEDY
from espnet_ext.data.audio_stream import with_last
from espnet_ext.data.features import FRAMES_PER_SECOND, SUBSAMPLING
from espnet_ext.data.pauses import cut_at_pauses, ends_in_pause, is_silent
from espnet_ext.models.local_agreement import FirstPass, Heard, common_prefix

_LONGEST = 25.0  # seconds of a segment
_SHORTEST = 0.5  # seconds that a segment has at least


@dataclass
class _Segment:
    """Samples since the last segment ended, and their first pass."""

    wave: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    heard: Heard = field(default_factory=Heard)
    seconds: list[float] = field(default_factory=list)  # at which each token was first found
    counted: int = 0  # certain tokens that were counted
    text: str = ""


class AttentionStreamer:
    """A deployed model with a Whisper decoder that decodes one stream after another.

    Raises:
        UserError: the model cannot stream, or is not what its config makes.
    """

    def __init__(self, model: Path | Bundle, options: dict, rate: int = 16000):
        self.decoder = Decoder(model, ATTENTION_GREEDY, options, SpeechInput(rate))
        self.first = FirstPass(self.decoder.model, self.decoder.tokens_per_second)
        self.rate = rate

    @property
    def piece(self) -> int:
        """Samples of a chunk: the size of pieces that ``run`` expects."""
        return self.first.piece(self.rate)

    def run(self, pieces: Iterable[np.ndarray], timing: Timing) -> Iterator[Partial]:
        """Yield the text of the current segment whenever it changes, and at its end."""
        segment = _Segment()
        for piece, last in with_last(pieces):
            start = time.perf_counter()
            timing.hear(piece, self.rate)
            if last:
                refuse_short(timing)
            segment.wave = np.concatenate([segment.wave, piece])
            done, rest = self._finished(segment.wave, last)
            if done is None:
                found, frames = self._advance(segment, timing.audio)
            else:
                found, frames = self._finish(segment, done, timing.audio)
                segment = _Segment(rest)
            timing.add(time.perf_counter() - start, frames, any(p.text for p in found))
            yield from found

    def doubts(self, timing: Timing) -> list[str]:
        """Reasons to distrust the text of a finished stream, one line each; usually none."""
        return doubts(timing, self.piece / self.rate)

    def _finished(self, wave: np.ndarray, last: bool) -> tuple[np.ndarray | None, np.ndarray]:
        """The samples of the segment if it has ended, and those that follow it."""
        if last or ends_in_pause(wave, self.rate):
            return wave, wave[:0]
        if len(wave) <= _LONGEST * self.rate:
            return None, wave
        done = cut_at_pauses(wave, round(_LONGEST * self.rate), self.rate)[0]
        return done, wave[len(done) :]

    def _advance(self, segment: _Segment, second: float) -> tuple[list[Partial], list[int]]:
        """The first pass over a segment so far."""
        if is_silent(segment.wave):
            return [], []
        before = segment.heard.tokens
        segment.heard = self.first.advance(segment.wave, segment.heard)
        tokens = segment.heard.tokens
        same = common_prefix(before, tokens)
        segment.seconds = [*segment.seconds[:same], *[second] * (len(tokens) - same)]
        certain = segment.seconds[segment.counted : segment.heard.certain]
        segment.counted = segment.heard.certain
        text = self.decoder.text_of(tokens)
        changed, segment.text = text != segment.text, text
        return [Partial(second, text, False)] * changed, [_frame(s) for s in certain]

    def _finish(
        self, segment: _Segment, wave: np.ndarray, second: float
    ) -> tuple[list[Partial], list[int]]:
        """The second pass over a whole segment."""
        short = len(wave) < _SHORTEST * self.rate or self.decoder.is_too_short(wave)
        if short or is_silent(wave):
            text = ""
        else:
            (text,) = self.decoder.texts([wave])
        frames = [_frame(s) for s in segment.seconds[segment.counted :]]
        return [Partial(second, text, True)] * bool(text), frames


def _frame(second: float) -> int:
    """The frame of ``Timing`` that ends at a second."""
    return round(second * FRAMES_PER_SECOND / SUBSAMPLING) - 1
