"""A model that is called with samples: text, segments, times and confidences.

It cuts recordings into segments and puts together what a ``SegmentDecoder`` finds in them: torch's
(``bridge.decoding.decoder``), or that of exported graphs (``export.runtime.decoder``), which needs
no torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from espnet_ext.data.audio import check_samples, read_stretch, resampled
from espnet_ext.data.pauses import cut_at_pauses, is_silent
from espnet_ext.errors import UserError


@dataclass(frozen=True)
class Found:
    """The result of a search in a segment.

    Attributes:
        text: or the class; empty if nothing was recognised.
        confidence: geometric mean of the probabilities of its tokens, of a classifier the
            probability of the class; None if the search has none, or nothing was recognised.
        tokens: ids, if the search aligns them with frames.
        places: of each token, from 0 at the start of the segment to 1 at its end.
    """

    text: str
    confidence: float | None = None
    tokens: Sequence[int] = ()
    places: Sequence[float] = ()


def mean_probability(score: float, tokens: int) -> float | None:
    """The geometric mean of the probabilities of tokens, from the sum of their logarithms."""
    return math.exp(score / tokens) if tokens else None


class SegmentDecoder(Protocol):
    """Finds texts in segments."""

    batch_size: int  # segments that are decoded together

    @property
    def rate(self) -> int:
        """Samples per second."""
        ...

    @property
    def longest(self) -> int | None:
        """Samples of a segment at most; None: recordings are not cut (a classifier)."""
        ...

    def decode_waves(self, waves: Sequence[np.ndarray]) -> list[Found]:
        """Search each segment (samples,)."""
        ...

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        ...


@dataclass(frozen=True)
class Word:
    """A word and the second at which its first token was found."""

    word: str
    start: float


@dataclass(frozen=True)
class Segment:
    """A part of a recording, which was decoded at once; ``start`` and ``end`` are seconds.

    For text and confidence see ``Found``; words have times if the search aligns tokens.
    """

    start: float
    end: float
    text: str
    confidence: float | None
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Transcript:
    """The result of a model for a recording.

    Attributes:
        text: of all segments, or the class.
        seconds: of the recording.
        segments: in their order.
    """

    text: str
    seconds: float
    segments: tuple[Segment, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


class Recogniser:
    """A deployed or exported model.

        model = espnet_ext.load("exp/nested_whisper_tiny_m/deploy/4L-1536-4b")
        print(model(samples, 16000).text)

    Attributes:
        decoder: of its segments.
        rate: samples per second of the model; others are resampled.
    """

    def __init__(self, decoder: SegmentDecoder):
        self.decoder = decoder
        self.rate = decoder.rate

    def __call__(
        self, samples: Any, rate: int, on_segment: Callable[[Segment], object] | None = None
    ) -> Transcript:
        """Recognise, translate or classify a recording.

        Long recordings are cut at pauses. A segment of silence has an empty text.

        Args:
            samples: (samples,) or (samples, channels), in [-1, 1], an array or a tensor; of
                channels the mean counts.
            rate: samples per second.
            on_segment: called with each segment when it is done, to show progress.

        Raises:
            UserError: no samples, NaN, or samples far outside of [-1, 1].
        """
        wave = self._wave(np.asarray(samples, np.float32), rate)
        found = []
        for segment in self.segments(wave):
            found.append(segment)
            if on_segment is not None:
                on_segment(segment)
        text = " ".join(segment.text for segment in found if segment.text)
        return Transcript(text, len(wave) / self.rate, tuple(found))

    def file(
        self, path: str | Path, on_segment: Callable[[Segment], object] | None = None
    ) -> Transcript:
        """The same for an audio file of any format that libsndfile reads.

        Raises:
            UserError: it cannot be decoded, is cut short or empty.
        """
        samples, rate = read_stretch(Path(path), Path(path).name)
        return self(samples, rate, on_segment)

    def segments(self, wave: np.ndarray) -> Iterator[Segment]:
        """Yield the segments of a wave (samples,) of the model's rate, as they are decoded."""
        longest, batch = self.decoder.longest, self.decoder.batch_size
        pieces = [wave] if longest is None else cut_at_pauses(wave, longest, self.rate)
        start = 0
        for first in range(0, len(pieces), batch):
            group = pieces[first : first + batch]
            for piece, found in zip(group, self._found(group), strict=True):
                end = start + len(piece)
                yield self._segment(start / self.rate, end / self.rate, found)
                start = end

    def _wave(self, samples: np.ndarray, rate: int) -> np.ndarray:
        if samples.ndim > 2 or not samples.size:
            raise UserError("no samples: give (samples,) or (samples, channels)")
        check_samples(samples, "the recording")
        return resampled(samples if samples.ndim == 1 else samples.mean(1), rate, self.rate)

    def _found(self, waves: Sequence[np.ndarray]) -> list[Found]:
        """Search each wave; in silence there is nothing, but for a class."""
        always = self.decoder.longest is None
        heard = [always or not is_silent(wave) for wave in waves]
        chosen = [wave for wave, loud in zip(waves, heard, strict=True) if loud]
        found = iter(self.decoder.decode_waves(chosen))
        return [next(found) if loud else Found("") for loud in heard]

    def _segment(self, start: float, end: float, found: Found) -> Segment:
        words = tuple(
            Word(word, round(start + place * (end - start), 3))
            for word, place in self._words(found)
        )
        return Segment(round(start, 3), round(end, 3), found.text, found.confidence, words)

    def _words(self, found: Found) -> Iterator[tuple[str, float]]:
        """Yield the words of aligned tokens, each with the place of its first token."""
        places: list[float] = []
        for count, place in enumerate(found.places, 1):
            new = len(self.decoder.text_of(found.tokens[:count]).split()) - len(places)
            places += [place] * new
        return zip(found.text.split(), places, strict=False)
