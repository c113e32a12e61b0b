"""Frame features from a layer of a self-supervised model: wav2vec 2.0, HuBERT, WavLM.

Baevski et al. (arXiv 2006.11477), Hsu et al. (arXiv 2106.07447), Chen et al. (arXiv 2110.13900).
The model is a folder in the format of transformers, with its weights in safetensors: nothing is
fetched, and no pickle is opened. It is frozen; what it weighs and costs is not in the figures of
the models that are trained on its features.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.errors import UserError
from espnet_ext.files import read_json

FAMILIES = ("wav2vec2", "hubert", "wavlm")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Never used but while such a model is trained; some files leave it out.
_UNUSED = ("masked_spec_embed",)


@dataclass(frozen=True)
class SSLModel:
    """A layer of a model; 0 is what goes into the first Transformer block."""

    folder: Path
    layer: int
    width: int
    rate: int
    frames_per_second: float
    normalised: bool  # waves are brought to mean 0 and variance 1, as while it was trained

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

    def extractor(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function of a wave (samples,) in [-1, 1] that returns (frames, width) float32.

        Raises:
            UserError: the weights cannot be read, or are not all there.
        """
        times = tuple((str(p.resolve()), p.stat().st_mtime_ns) for p in self.files)
        return _extractor(self, times)


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
    told = {"sampling_rate": 16000, "do_normalize": True}
    if (folder / "preprocessor_config.json").is_file():
        told |= _read(folder / "preprocessor_config.json")
    rate = int(told["sampling_rate"])
    return SSLModel(
        folder, layer, width, rate, rate / math.prod(strides), bool(told["do_normalize"])
    )


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


@functools.lru_cache(maxsize=1)  # loaded once a process, while the files are the same
def _extractor(
    described: SSLModel, files: tuple[tuple[str, int], ...]
) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    model = load_ssl(described)
    # Layers behind the chosen one are not computed. One more stays, since some families
    # normalise what leaves the last block.
    model.encoder.layers = model.encoder.layers[: described.layer + 1]

    @torch.inference_mode()
    def extract(wave: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(wave).float().unsqueeze(0)
        if described.normalised:
            deviation = (samples.var(unbiased=False) + 1e-7).sqrt()
            samples = (samples - samples.mean()) / deviation
        found = model(samples, output_hidden_states=True).hidden_states[described.layer]
        return found[0].numpy().astype(np.float32)

    return extract


def load_ssl(described: SSLModel) -> Any:
    """The model in evaluation mode and float32, from its folder alone.

    Raises:
        UserError: the weights cannot be read, or are not all there.
    """
    try:
        import torch
        from transformers import AutoModel, logging
    except ImportError:
        raise UserError(
            "frontend ssl needs the package transformers: pip install 'espnet-ext[ssl]'"
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            str(described.folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many types, by transformers and safetensors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{described.folder}: cannot load the model: {reason}") from None
    missing = sorted(key for key in report["missing_keys"] if key not in _UNUSED)
    if missing:
        raise UserError(
            f"{described.folder}: {len(missing)} weights are missing ({missing[0]}, ...): "
            "it is no whole model"
        )
    return model.eval()
