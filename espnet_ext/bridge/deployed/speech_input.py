"""The input of a deployed model: samples, log-mel that is computed here, or arks."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from espnet_ext.data.arks import read_matrix
from espnet_ext.data.audio import read_wave
from espnet_ext.data.fbank import log_mel
from espnet_ext.data.features import FRAMES_PER_SECOND, KALDI, known_definition
from espnet_ext.data.ssl_model import SSLModel
from espnet_ext.experiment import Experiment

SHORT = 0.2  # seconds; from here on every encoder has a frame


@dataclass(frozen=True)
class SpeechInput:
    """How audio becomes the input of a model.

    The input of a model without a frontend is log-mel, which its training model computed itself or
    read from arks.

    Attributes:
        rate: samples per second of audio.
        deltas: orders of differences in log-mel.
        from_arks: utterances are read as features.
        frames_per_second: of these features.
        definition: of log-mel, see ``features.DEFINITIONS``.
        layers: of a pretrained model, whose outputs are the features; empty: of none.
    """

    rate: int
    deltas: int = 0
    from_arks: bool = False
    frames_per_second: float = FRAMES_PER_SECOND
    definition: str = KALDI
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a definition that there is not."""
        known_definition(self.definition)

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The input of an experiment's models."""
        features = experiment.features
        return cls(
            experiment.rate,
            experiment.deltas,
            features is not None,
            experiment.frames_per_second,
            experiment.log_mel_definition,
            features.layers if isinstance(features, SSLModel) else (),
        )

    def prepared(self, wave: Tensor, width: int | None) -> Tensor:
        """The input of a model of ``width`` features a frame, or of samples if ``width`` is None.

        Args:
            wave: (samples,) in [-1, 1], or features (frames, width), which are returned.
            width: of a model without a frontend.
        """
        if width is None or wave.dim() > 1:
            return wave
        bins = width // (1 + self.deltas)
        return log_mel(wave, self.rate, bins, self.deltas, self.definition)

    def is_short(self, inputs: np.ndarray | Tensor) -> bool:
        """True if samples (n,) or features (frames, width) may be too few for a frame."""
        if inputs.ndim == 1:
            return len(inputs) < SHORT * self.rate
        frames = self.frames_per_second if self.from_arks else FRAMES_PER_SECOND
        return len(inputs) < SHORT * frames

    def read(self, utterance: str, where: str, width: int | None) -> tuple[np.ndarray, float]:
        """Read an utterance.

        Args:
            utterance: its id, for messages.
            where: path of its audio, or "ark:offset".
            width: as of ``prepared``.

        Returns:
            Features (frames, width) or samples, and the length in seconds.

        Raises:
            UserError: it cannot be read.
        """
        if self.from_arks:
            feats = read_matrix(where, utterance)
            return feats, len(feats) / self.frames_per_second
        wave = read_wave(where, utterance, self.rate)
        prepared = self.prepared(torch.from_numpy(wave), width)
        return prepared.numpy(), len(wave) / self.rate
