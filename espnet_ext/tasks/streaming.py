"""Decode audio chunk by chunk with a deployed streaming transducer, and time it."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin.asr_inference import Speech2Text
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor

from espnet_ext.data.fbank import FRAMES_PER_SECOND, OnlineFbank
from espnet_ext.encoders.chunks import SUBSAMPLING
from espnet_ext.errors import UserError
from espnet_ext.files import weights_file
from espnet_ext.tasks.checkpoint import load_model
from espnet_ext.tasks.decoding import load_speech2text, search_of, text_of

_FRAME_SECONDS = 1 / FRAMES_PER_SECOND


@dataclass
class Timing:
    """Processing time of a stream, as if its audio came in real time.

    Attributes:
        chunks: seconds of processing for each chunk of audio, features included.
        ready: second, from the start of the audio, at which the last chunk was done.
        first_token: that second when the first token came; None before.
        delays: of each token, seconds from the end of its encoder frame to its output.
        peak: largest absolute sample.
    """

    chunks: list[float] = field(default_factory=list)
    audio: float = 0.0
    ready: float = 0.0
    first_token: float | None = None
    delays: list[float] = field(default_factory=list)
    peak: float = 0.0

    def add(self, arrived: float, spent: float, frames: Iterable[int]) -> None:
        """Count a chunk whose audio was there at ``arrived`` and the tokens it gave."""
        self.chunks.append(spent)
        self.ready = max(self.ready, arrived) + spent
        for frame in frames:
            if self.first_token is None:
                self.first_token = self.ready
            self.delays.append(self.ready - (frame + 1) * SUBSAMPLING * _FRAME_SECONDS)

    def summary(self) -> dict[str, Any]:
        """Latency figures in milliseconds; the real-time factor of one thread."""

        def quantile(values: list[float], q: int) -> float | None:
            return round(1000 * float(np.percentile(values, q)), 2) if values else None

        first = None if self.first_token is None else round(1000 * self.first_token, 1)
        return {
            "audio_seconds": round(self.audio, 3),
            "chunks": len(self.chunks),
            "rtf": round(sum(self.chunks) / self.audio, 5),
            "chunk_ms_p50": quantile(self.chunks, 50),
            "chunk_ms_p95": quantile(self.chunks, 95),
            "first_token_ms": first,
            "token_delay_ms_p50": quantile(self.delays, 50),
            "token_delay_ms_p95": quantile(self.delays, 95),
        }


class Streamer:
    """A deployed model with all that a stream needs; one stream after another.

    Raises:
        UserError: the model cannot stream, or is not what its config makes.
    """

    def __init__(self, model: Path, method: str, options: dict, rate: int = 16000):
        load_model(model / "config.yaml", weights_file(model))
        self.speech2text: Speech2Text = load_speech2text(model, method, options)
        asr = self.speech2text.asr_model
        if not hasattr(asr.encoder, "forward_chunk"):
            name = self.speech2text.asr_train_args.encoder
            raise UserError(f"encoder {name} cannot stream; train streaming_transformer")
        if not isinstance(asr.normalize, GlobalMVN | None):
            raise UserError("a stream needs normalize: global_mvn, which needs no whole utterance")
        search = search_of(asr, method, options)
        if search is None:
            raise UserError(f"{method} cannot stream; take transducer_greedy or transducer_beam")
        self.encoder, self.normalize, self.search = asr.encoder, asr.normalize, search
        self.rate, self.bins = rate, int(self.speech2text.asr_train_args.input_size or 80)
        self.chunk = self.encoder.geometry.chunk * SUBSAMPLING  # feature frames

    @property
    def piece(self) -> int:
        """Samples of a chunk: the size of pieces that ``run`` expects."""
        return round(self.chunk * _FRAME_SECONDS * self.rate)

    @torch.no_grad()
    def run(self, pieces: Iterable[np.ndarray], timing: Timing) -> Iterator[tuple[float, str]]:
        """Yield (second of audio, text so far) whenever the text changes, and at the end.

        Raises:
            UserError: the stream is shorter than a window of features.
        """
        fbank = OnlineFbank(self.rate, self.bins)
        feats = torch.zeros(0, self.bins)
        state, found = self.encoder.init_state(1), self.search.start(1)
        kept: list[int] = []
        text = ""
        for piece, last in _with_last(pieces):
            start = time.perf_counter()
            timing.audio += len(piece) / self.rate
            timing.peak = max(timing.peak, float(np.abs(piece).max(initial=0.0)))
            if last and timing.audio * self.rate < fbank.window:
                raise UserError(f"the stream has {timing.audio:.3f} s, less than a window of 25 ms")
            new = [fbank.accept(torch.from_numpy(piece))] + ([fbank.finish()] if last else [])
            feats = torch.cat([feats, *new])
            ready = len(feats) if last else len(feats) // self.chunk * self.chunk
            frames: tuple[int, ...] = ()
            if ready or last:
                batch = self._normalised(feats[:ready])
                encoded, lengths, state = self.encoder.forward_chunk(batch, state, final=last)
                feats = feats[ready:]
                found = self.search.advance(encoded, lengths, found)
                (certain,) = self.search.commit(found)
                kept += certain.tokens
                frames = certain.frames
            (open_,) = self.search.results(found)
            now = text_of(self.speech2text, [*kept, *open_.tokens])
            timing.add(timing.audio, time.perf_counter() - start, frames)
            if now != text or last:
                yield timing.audio, now
            text = now

    def doubts(self, timing: Timing) -> list[str]:
        """What makes the text of an ended stream worth nothing, one line each; usually none."""
        found = []
        chunk = self.chunk * _FRAME_SECONDS
        if timing.audio < chunk:
            found.append(f"the stream has {timing.audio:.3f} s, less than a chunk of {chunk:g} s")
        if timing.peak == 0:
            found.append("the stream is silence: all its samples are 0; is the microphone on?")
        return found

    def _normalised(self, feats: Tensor) -> Tensor:
        batch = feats.unsqueeze(0)
        if self.normalize is None or not len(feats):
            return batch
        return self.normalize(batch, torch.tensor([len(feats)]))[0]


def _with_last(pieces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield every piece and whether it is the last."""
    before: np.ndarray | None = None
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    yield (np.zeros(0, np.float32) if before is None else before), True
