"""An exported transducer that decodes one stream after another, without torch."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.bridge.streaming.latency import Timing, doubts, refuse_short
from espnet_ext.bridge.streaming.text_segments import Partial, Segments
from espnet_ext.data.audio_stream import with_last
from espnet_ext.errors import UserError
from espnet_ext.export.runtime.decoder import OnnxDecoder


class OnnxStreamer:
    """The graphs of a folder that ``espnet-ext export`` wrote, as ``TransducerStreamer``.

    Arguments are those of ``OnnxDecoder``.

    Raises:
        UserError: what ``OnnxDecoder`` raises, or a model that does not stream.
    """

    def __init__(self, folder: Path, *chosen: Any, **options: Any):
        self.decoder = OnnxDecoder(folder, *chosen, **options)
        settings = self.decoder.model.settings
        if settings["kind"] != "transducer":
            raise UserError(f"{folder}: this exported model does not stream: leave out --stream")
        self.rate = self.decoder.rate
        self.piece = settings["shift"] * self.rate // 100

    def run(self, pieces: Iterable[np.ndarray], timing: Timing) -> Iterator[Partial]:
        """Yield the text of the current segment whenever it changes, and at the end."""
        from espnet_ext.export.runtime.run_onnx import Stream

        stream, segments, shown = Stream(self.decoder.model), Segments(self.decoder), ""
        for piece, last in with_last(pieces):
            start = time.perf_counter()
            timing.hear(piece, self.rate)
            if last:
                refuse_short(timing)
            stream.accept(np.asarray(piece, np.float32), last)
            finished = segments.add(stream.tokens)
            text, frames = segments.text(), stream.frames
            stream.tokens, stream.frames = [], []
            timing.add(time.perf_counter() - start, frames, bool(text or finished))
            yield from (Partial(timing.audio, done, True) for done in finished)
            if text != ("" if finished else shown) or last:
                yield Partial(timing.audio, text, last)
            shown = text

    def doubts(self, timing: Timing) -> list[str]:
        """Reasons to distrust the text of a finished stream, one line each; usually none."""
        return doubts(timing, self.piece / self.rate)
