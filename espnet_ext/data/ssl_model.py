"""What a layer of a self-supervised model is that features are read from, by its files.

wav2vec 2.0: Baevski et al. (arXiv 2006.11477); HuBERT: Hsu et al. (arXiv 2106.07447); WavLM: Chen
et al. (arXiv 2110.13900).
The model is a folder in the format of transformers, with its weights in safetensors: nothing is
fetched, and no pickle is opened. It is frozen; what it weighs and costs is not in the figures of
the models that are trained on its features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.files import read_json

FAMILIES = ("wav2vec2", "hubert", "wavlm")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class SSLModel:
    """A layer of a model; 0 is what goes into the first Transformer block."""

    folder: Path
    layer: int
    width: int
    rate: int
    frames_per_second: float

    @property
    def name(self) -> str:
        """Such as ssl_wavlm-base_l6."""
        return f"ssl_{self.folder.name}_l{self.layer}"

    @property
    def settings(self) -> dict[str, Any]:
        """The layer; the rest stands in the model's files."""
        return {"layer": self.layer}

    @property
    def files(self) -> list[Path]:
        """Configs and weights of the model."""
        return sorted([*self.folder.glob("*config.json"), *self.folder.glob("model*.safetensors")])


def read_ssl(folder: Path, layer: int) -> SSLModel:
    """Read what a model's configs say of it.

    Raises:
        UserError: no such folder or layer, no model of the three families, or no safetensors.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder of a downloaded model")
    config = _read(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{folder} is a model of family {family!r}; read are {', '.join(FAMILIES)}")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"no {folder}/model.safetensors; weights in pickles are not opened, convert them"
        )
    try:
        layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
        strides = [int(stride) for stride in config["conv_stride"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json: no usable {error}; it is no whole model") from None
    if not 0 <= layer <= layers:
        raise UserError(f"layer must be from 0 to {layers} in {folder}, not {layer}")
    told: dict[str, Any] = {"sampling_rate": 16000}
    if (folder / "preprocessor_config.json").is_file():
        told |= _read(folder / "preprocessor_config.json")
    rate = int(told["sampling_rate"])
    return SSLModel(folder, layer, width, rate, rate / math.prod(strides))


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
