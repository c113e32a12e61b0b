"""Attention within chunks and their history, so that an encoder can follow a stream.

With ``whole`` above 0 a training draws for each batch whether layers attend within chunks or to
everything, as in U2 (arXiv 2012.05481, section 3.2): one model then does both.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet_ext.encoders.chunks import Geometry
from espnet_ext.errors import UserError, nearest

FRAME_MS = 20  # of Whisper's encoder
_KEYS = ("chunk_ms", "history_ms", "whole")


@dataclass
class Chunks:
    """The chunks of an encoder.

    Attributes:
        geometry: chunk and history.
        whole: share of the batches of a training in which layers attend to everything.
        streaming: layers attend within chunks; see ``streaming_mode``.
    """

    geometry: Geometry
    whole: float = 0.0
    streaming: bool = False

    def active(self, training: bool) -> bool:
        """Draw whether layers attend within chunks in this forward pass."""
        if training and self.whole > 0:
            return bool(torch.rand(()) >= self.whole)
        return self.streaming or self.whole == 0


@contextlib.contextmanager
def streaming_mode(chunks: Chunks) -> Iterator[None]:
    """Let layers attend within chunks inside the block."""
    before, chunks.streaming = chunks.streaming, True
    try:
        yield
    finally:
        chunks.streaming = before


def read_chunks(conf: Mapping[str, Any]) -> Chunks:
    """Read the section ``chunks`` of ``encoder: stack``; may raise UserError."""
    for key in conf:
        if key not in _KEYS:
            raise UserError(f"encoder: stack: chunks: unknown option {nearest(str(key), _KEYS)}")
    if "chunk_ms" not in conf:
        raise UserError("encoder: stack: chunks needs chunk_ms, as in {chunk_ms: 640}")
    sizes = {"history_ms": 4000, **conf}
    whole = sizes.pop("whole", 0.0)
    if isinstance(whole, bool) or not isinstance(whole, int | float) or not 0 <= whole < 1:
        raise UserError(f"encoder: stack: chunks: whole must be from 0 to below 1, not {whole!r}")
    try:
        return Chunks(Geometry.of(**sizes, lookahead_ms=0, frame_ms=FRAME_MS), float(whole))
    except UserError as error:
        raise UserError(f"encoder: stack: chunks: {error}") from None


def chunk_mask(frames: int, geometry: Geometry, device: Any = None) -> Tensor:
    """Which frames (queries, keys), (T, T), attend to which: true where they do.

    A frame attends to its chunk and to the history before it. There is no look-ahead: frames of
    the next chunk see all of that, so it would be a chunk longer with every layer.
    """
    place = torch.arange(frames, device=device)
    start = (place // geometry.chunk * geometry.chunk).unsqueeze(1)
    first, last = start - geometry.history, start + geometry.chunk
    return (place >= first) & (place < last)


def complete_frames(samples: int, geometry: Geometry) -> int:
    """Frames of whole chunks that samples to come cannot change.

    A frame needs 320 samples, and 200 more for the window of the last log-mel frame that the
    convolutions see.
    """
    return max(0, samples - 200) // 320 // geometry.chunk * geometry.chunk
