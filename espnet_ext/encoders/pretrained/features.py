"""Frame features from layers of a pretrained model: arks of stage 2, input of a deployed model.

The model is a frozen ``Stack``, loaded as for ``encoder: stack``. Layers after the last chosen
one are not run.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet_ext.data.ssl_model import SSLModel
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.encoders.pretrained.wav2vec2 import Wav2Vec2Stack
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.errors import UserError


class LayerFeatures(AbsFrontend):
    """The outputs of layers of a model, side by side, as the frontend of an ESPnet model.

    Attributes:
        stack: the model.
        layers: whose outputs are used; 0 is the input of the first.
    """

    def __init__(self, described: SSLModel):
        """Load the model.

        Raises:
            UserError: the weights cannot be read, or some are missing.
        """
        super().__init__()
        self.stack = load_stack(described.folder).requires_grad_(False)
        self.layers = described.layers
        self._width = described.width

    def output_size(self) -> int:
        """Features of a frame."""
        return self._width

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn samples (batch, n) and lengths into (batch, frames, features) and lengths.

        Raises:
            UserError: speech that is too short for a frame, or longer than the model has positions.
        """
        return self._chosen(*self.stack.front(input, input_lengths))

    def of_features(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same for what the convolutions read (``StackEncoder.encode_features``)."""
        assert isinstance(self.stack, WhisperStack | Wav2Vec2Stack)
        return self._chosen(*self.stack.convolved(x, lengths))

    def _chosen(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # Without the norm after a stack of pre-norm layers, which is part of no layer.
        outputs = self.stack.states(x, lengths, max(self.layers), finished=False)
        return torch.cat([outputs[layer] for layer in self.layers], dim=-1), lengths


def layer_extractor(described: SSLModel) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of a wave (samples,) in [-1, 1] that returns (frames, width) float32.

    Raises:
        UserError: the weights cannot be read, or some are missing; the function raises one for a
            wave that is too short.
    """
    times = tuple((str(p.resolve()), p.stat().st_mtime_ns) for p in described.files)
    return _extractor(described, times)


@functools.lru_cache(maxsize=1)  # loaded once per process while the files stay the same
def _extractor(
    described: SSLModel, files: tuple[tuple[str, int], ...]
) -> Callable[[np.ndarray], np.ndarray]:
    frontend = LayerFeatures(described)

    @torch.inference_mode()
    def extract(wave: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(wave).float().unsqueeze(0)
        found, _ = frontend(samples, torch.tensor([len(wave)]))
        return found[0].numpy().astype(np.float32)

    return extract


def save_model(described: SSLModel, folder: Path) -> None:
    """Save the layers of a model that its features need, in the format of transformers.

    Raises:
        UserError: the model cannot be read, or the saved one computes other features.
    """
    stack = load_stack(described.folder)
    needed = max(1, *described.layers)
    stack.remove(range(needed, stack.num_layers)).save(folder)
    saved = dataclasses.replace(described, folder=folder)
    noise = 0.1 * torch.randn(1, described.rate, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([described.rate])
    with torch.no_grad():
        wanted, found = (LayerFeatures(one)(noise, length)[0] for one in (described, saved))
    if not torch.equal(wanted, found):
        raise UserError(f"{folder}: the saved model computes other features; report it")
