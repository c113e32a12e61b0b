"""Streaming decoding: audio chunk by chunk with a deployed transducer, with its latency."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.streaming.latency import Timing, doubts, refuse_short
from espnet_ext.bridge.streaming.text_segments import Partial, Segments
from espnet_ext.data.audio_stream import with_last
from espnet_ext.data.fbank import OnlineFbank
from espnet_ext.data.features import FRAMES_PER_SECOND, SUBSAMPLING
from espnet_ext.errors import UserError


@dataclass
class Stream:
    """The state between two chunks of a stream, of constant size.

    Attributes:
        fbank: samples that wait for a feature frame.
        feats: (frames, bins) features that wait for a full chunk.
        encoder: state of the encoder.
        search: state of the search.
        segments: final tokens.
        timing: measurements.
        shown: text of the current segment that was returned last.
    """

    fbank: OnlineFbank
    feats: Tensor
    encoder: Any
    search: Any
    segments: Segments
    timing: Timing
    shown: str = ""


class TransducerStreamer:
    """A deployed model that decodes one stream after another.

    Raises:
        UserError: the model cannot stream, or is not what its config makes.
    """

    def __init__(self, model: Path | Bundle, method: str, options: dict, source: SpeechInput):
        self.decoder = Decoder(model, method, options, source)
        asr = self.decoder.model
        if not hasattr(asr.encoder, "forward_chunk"):
            name = self.decoder.inference.asr_train_args.encoder
            raise UserError(
                f"encoder {name} cannot stream; train streaming_transformer or streaming_conformer"
            )
        if not isinstance(asr.normalize, GlobalMVN | None):
            raise UserError("a stream needs normalize: global_mvn, which needs no whole utterance")
        search = self.decoder.search
        if search is None:
            raise UserError(f"{method} cannot stream; use transducer_greedy or transducer_beam")
        self.encoder, self.normalize, self.search = asr.encoder, asr.normalize, search
        self.rate, self.bins = source.rate, int(self.decoder.width or 80)
        self.chunk = self.encoder.geometry.chunk * SUBSAMPLING  # feature frames

    @property
    def piece(self) -> int:
        """Samples of a chunk: the size of pieces that ``run`` expects."""
        return round(self.chunk / FRAMES_PER_SECOND * self.rate)

    def run(self, pieces: Iterable[np.ndarray], timing: Timing) -> Iterator[Partial]:
        """Yield the text of the current segment whenever it changes, and at the end.

        The texts that are finished, one after another, are the text of the whole.

        Raises:
            UserError: the stream is shorter than a window of features.
        """
        stream = self.start(timing)
        for piece, last in with_last(pieces):
            yield from self.accept(piece, last, stream)

    def start(self, timing: Timing) -> Stream:
        """The state before the first chunk, which counts into ``timing``."""
        feats = torch.zeros(0, self.bins)
        states = self.encoder.init_state(1), self.search.start(1)
        segments = Segments(self.decoder)
        fbank = OnlineFbank(self.rate, self.bins, self.decoder.source.definition)
        return Stream(fbank, feats, *states, segments, timing)

    @torch.no_grad()
    def accept(self, piece: np.ndarray, last: bool, stream: Stream) -> list[Partial]:
        """Process samples (n,); return what ``run`` yields for them. ``stream`` is changed."""
        start = time.perf_counter()
        timing = stream.timing
        timing.hear(piece, self.rate)
        encoded, lengths = self._encode(self._features(piece, last, stream), last, stream)
        stream.search = self.search.advance(encoded, lengths, stream.search)
        (certain,) = self.search.commit(stream.search)
        (open_,) = self.search.results(stream.search)
        finished = stream.segments.add(certain.tokens)
        text = stream.segments.text(open_.tokens)
        frames = certain.frames + (open_.frames if last else ())
        timing.add(time.perf_counter() - start, frames, bool(text or finished))
        shown = "" if finished else stream.shown
        found = [Partial(timing.audio, done, True) for done in finished]
        if text != shown or last:
            found.append(Partial(timing.audio, text, last))
        stream.shown = text
        return found

    def _features(self, piece: np.ndarray, last: bool, stream: Stream) -> Tensor:
        """Features (frames, bins) of whole chunks, or of all that is left."""
        fbank = stream.fbank
        if last:
            refuse_short(stream.timing)
        new = [fbank.accept(torch.from_numpy(piece))] + ([fbank.finish()] if last else [])
        feats = torch.cat([stream.feats, *new])
        ready = len(feats) if last else len(feats) // self.chunk * self.chunk
        stream.feats = feats[ready:]
        return feats[:ready]

    def _encode(self, feats: Tensor, last: bool, stream: Stream) -> tuple[Tensor, Tensor]:
        """Encoded frames (1, T, d) and their number (1,); T is 0 until the look-ahead is there."""
        batch = self._normalised(feats)
        encoded, lengths, stream.encoder = self.encoder.forward_chunk(
            batch, stream.encoder, final=last
        )
        return encoded, lengths

    def doubts(self, timing: Timing) -> list[str]:
        """Reasons to distrust the text of a finished stream, one line each; usually none."""
        return doubts(timing, self.chunk / FRAMES_PER_SECOND)

    def _normalised(self, feats: Tensor) -> Tensor:
        batch = feats.unsqueeze(0)
        if self.normalize is None or not len(feats):
            return batch
        return self.normalize(batch, torch.tensor([len(feats)]))[0]
