"""Attention within chunks and their history, so that an encoder can follow a stream."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from espnet_ext.encoders.chunks import Geometry
from espnet_ext.errors import UserError, nearest

FRAME_MS = 20  # of Whisper's encoder
_KEYS = ("chunk_ms", "history_ms")


def chunk_geometry(conf: Mapping[str, Any]) -> Geometry:
    """Read the section ``chunks`` of ``encoder: stack``; may raise UserError."""
    for key in conf:
        if key not in _KEYS:
            raise UserError(f"encoder: stack: chunks: unknown option {nearest(str(key), _KEYS)}")
    if "chunk_ms" not in conf:
        raise UserError("encoder: stack: chunks needs chunk_ms, as in {chunk_ms: 640}")
    sizes = {"history_ms": 4000, **conf}
    try:
        return Geometry.of(**sizes, lookahead_ms=0, frame_ms=FRAME_MS)
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
