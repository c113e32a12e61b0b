"""A Whisper as its graphs need it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from espnet_ext.encoders.chunks import Geometry
from espnet_ext.export.graphs.products import Weight

UNKNOWN, START, END, PROMPT, TEXT = range(5)  # ids of the runtime; text begins at the last


@dataclass(frozen=True)
class Mimics:
    """Mimics instead of the last layers of the encoder and the norm after them.

    Attributes:
        at: prefix of the names of their weights, before their number.
        count: one or two.
        heads: of a Transformer mimic; None: they are linear.
    """

    at: str
    count: int
    heads: int | None


@dataclass(frozen=True)
class Whisper:
    """A Whisper and what its graphs need.

    Attributes:
        state: weights by name, as files hold them; layers that share one have the same object.
        encoder, decoder: prefixes of the names of their parts, with their dots.
        heads: of attention.
        layers: of the encoder and the decoder.
        mel: filters (frequencies, bins).
        prompt: ids of the tokens that every text begins with.
        languages: ids of the tokens of languages, of which the graphs choose the second of the
            prompt; none: the prompt has it.
        end: id of the token that ends a text.
        least: samples that shorter speech is padded to with silence.
        rows: ids of the tokens of texts, in the order of the runtime's ids.
        mimics: after the layers of the encoder; with no layer there are no positions either.
        chunks: within which the encoder's layers attend; None: to everything.
    """

    state: Mapping[str, Weight]
    encoder: str
    decoder: str
    heads: int
    layers: tuple[int, int]
    mel: np.ndarray
    prompt: tuple[int, ...]
    end: int
    least: int
    rows: tuple[int, ...]
    languages: tuple[int, ...] = ()
    mimics: Mimics | None = None
    chunks: Geometry | None = None

    @property
    def width(self) -> int:
        """Features of a frame."""
        return len(self.tensor(f"{self.decoder}layer_norm.weight"))

    @property
    def kv_width(self) -> int:
        """Keys and values of a frame for all layers of the decoder."""
        return 2 * self.layers[1] * self.width

    @property
    def first_language(self) -> int:
        """The runtime's id of the first language; those of texts are lower."""
        return TEXT + len(self.rows)

    @property
    def ids(self) -> int:
        """How many ids the runtime has."""
        return self.first_language + len(self.languages)

    @property
    def has_residuals(self) -> bool:
        """True if layers share a base and have separate residuals."""
        return any(name.endswith((".down", ".diagonal")) for name in self.state)

    def weight(self, name: str) -> Weight:
        """A weight as its file holds it."""
        return self.state[name]

    def tensor(self, name: str) -> Tensor:
        """The numbers of a weight, float32."""
        found = self.state[name]
        return found.float() if isinstance(found, Tensor) else found.dequantised()
