"""Layers of a pretrained model whose outputs are used as features, by the model's files.

wav2vec 2.0: Baevski et al. (arXiv 2006.11477); HuBERT: Hsu et al. (arXiv 2106.07447); WavLM: Chen
et al. (arXiv 2110.13900), which are self-supervised; and the encoder of Whisper: Radford et al.
(arXiv 2212.04356), which was trained on transcripts.
The model is a folder in the format of transformers, with weights in safetensors: nothing is
fetched, and no pickle is opened. It is frozen. Its size and cost are not in the figures of models
that are trained on its features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.files import read_json

_WHISPER = ("whisper", "whisper_encoder")  # whole, or the encoder that a stack is saved as
FAMILIES = ("wav2vec2", "hubert", "wavlm", *_WHISPER)
_HOP = [160, 2]  # samples of a frame of Whisper's log-mel, and frames of one after its convolutions
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class SSLModel:
    """Layers of a model, side by side; 0 is the input of the first Transformer block."""

    folder: Path
    layers: tuple[int, ...]
    width: int
    rate: int
    frames_per_second: float

    @property
    def name(self) -> str:
        """Name of the folder of the arks, such as ssl_wavlm-base_l6 or, for two layers, _l5_6."""
        return f"ssl_{self.folder.name}_l{'_'.join(map(str, self.layers))}"

    @property
    def settings(self) -> dict[str, Any]:
        """Values that decide the features, for stamps; the others are in ``files``."""
        only = self.layers[0] if len(self.layers) == 1 else list(self.layers)
        return {"layer": only}

    @property
    def files(self) -> list[Path]:
        """Configs and weights of the model."""
        return sorted([*self.folder.glob("*config.json"), *self.folder.glob("model*.safetensors")])


def read_ssl(
    folder: Path, layers: Sequence[int], architecture: Mapping[str, Any] | None = None
) -> SSLModel:
    """Read the configs of a model.

    Args:
        folder: of the model.
        layers: whose outputs are used, joined along the features in this order.
        architecture: keys of config.json, for a model that has not been fetched yet.

    Raises:
        UserError: no such folder or layer, no model of the families, or no safetensors.
    """
    if not folder.is_dir():
        if architecture is None:
            raise UserError(f"no folder {folder}; give the folder of a downloaded model")
        return _described(folder, layers, architecture)
    config = _read(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{folder} is a model of family {family!r}, not one of {known}")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"no {folder}/model.safetensors; weights in pickles are not opened, convert them"
        )
    for key, value in (architecture or {}).items():
        if config.get(key, value) != value:
            raise UserError(f"{folder} has {key} {config[key]!r}, architecture says {value!r}")
    return _described(folder, layers, config)


def _described(folder: Path, layers: Sequence[int], config: Mapping[str, Any]) -> SSLModel:
    """The sizes of a model with this config.json."""
    whisper = config.get("model_type") in _WHISPER
    keys = ("encoder_layers", "d_model") if whisper else ("num_hidden_layers", "hidden_size")
    try:
        count, width = (int(config[key]) for key in keys)
        strides = _HOP if whisper else [int(stride) for stride in config["conv_stride"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json: no usable {error}; it is no whole model") from None
    for layer in layers:
        if not 0 <= layer <= count:
            raise UserError(f"layer must be from 0 to {count} in {folder}, not {layer}")
    audio: dict[str, Any] = {"sampling_rate": 16000}
    if (folder / "preprocessor_config.json").is_file():
        audio |= _read(folder / "preprocessor_config.json")
    rate = int(audio["sampling_rate"])
    frames_per_second = rate / math.prod(strides)
    return SSLModel(folder, tuple(layers), width * len(layers), rate, frames_per_second)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no model: it has no {path.name}") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON; fetch the model again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values; fetch the model again")
    return content
