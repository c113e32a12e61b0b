"""Definitions of features in arks: log-mel, or layers of a pretrained model.

They are computed by ``data.fbank`` and ``encoders.pretrained.features``. Reading a definition
imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.config.training import ARK_FRONTENDS, Config
from espnet_ext.data.ssl_model import SSLModel, read_ssl
from espnet_ext.errors import UserError

FRAMES_PER_SECOND = 100  # of log-mel
SUBSAMPLING = 4  # of log-mel, by encoders that stream
KALDI, NEMO = DEFINITIONS = ("kaldi", "nemo")  # of log-mel (``data.fbank``)


@dataclass(frozen=True)
class Fbank:
    """Log-mel of a ``definition`` and ``deltas`` orders of differences (``data.fbank``)."""

    bins: int
    rate: int
    deltas: int
    definition: str = KALDI

    @property
    def name(self) -> str:
        """Name of the folder of the arks, such as fbank26_d2."""
        kind = "" if self.definition == KALDI else f"_{self.definition}"
        return f"fbank{self.bins}{kind}" + (f"_d{self.deltas}" if self.deltas else "")

    @property
    def width(self) -> int:
        """Values of a frame: the bins, and as many for every order of differences."""
        return self.bins * (1 + self.deltas)

    @property
    def frames_per_second(self) -> float:
        """A frame every 10 ms."""
        return FRAMES_PER_SECOND

    @property
    def settings(self) -> dict[str, Any]:
        """Values that decide the features, for stamps."""
        deltas = {"deltas": self.deltas} if self.deltas else {}
        kind = {} if self.definition == KALDI else {"definition": self.definition}
        return {"bins": self.bins, "fs": self.rate, **deltas, **kind}

    @property
    def files(self) -> list[Path]:
        """Files that the features depend on: none."""
        return []


type Definition = Fbank | SSLModel


def ark_definition(config: Config) -> Definition:
    """Return the definition of a config's arks, by its frontend.

    Raises:
        UserError: the frontend writes none, a value is wrong, or the model is not there.
    """
    frontend = config.espnet.get("frontend")
    conf = config.espnet.get("frontend_conf") or {}
    if frontend == "kaldi_fbank":
        values = {"n_mels": 80, "fs": 16000, "deltas": 0, "definition": KALDI} | conf
        for key, least in (("n_mels", 1), ("fs", 1), ("deltas", 0)):
            if type(values[key]) is not int or values[key] < least:
                raise UserError(
                    f"{config.path}: frontend_conf: {key} must be a whole number, "
                    f"not {values[key]!r}"
                )
        try:
            kind = known_definition(values["definition"])
        except UserError as error:
            raise UserError(f"{config.path}: frontend_conf: {error}") from None
        return Fbank(values["n_mels"], values["fs"], values["deltas"], kind)
    if frontend == "ssl":
        return _ssl_definition(config, conf)
    known = " or ".join(ARK_FRONTENDS)
    raise UserError(f"{config.path}: recipe: features: ark needs frontend: {known}")


def known_definition(name: Any) -> str:
    """Return the name of a definition of log-mel.

    Raises:
        UserError: there is none of that name.
    """
    if name not in DEFINITIONS:
        raise UserError(f"definition must be {' or '.join(DEFINITIONS)}, not {name!r}")
    return name


def _ssl_definition(config: Config, conf: Mapping[str, Any]) -> SSLModel:
    folder, layer = conf.get("folder"), conf.get("layer")
    if not isinstance(folder, str) or not folder:
        raise UserError(
            f"{config.path}: frontend_conf: folder must be that of a wav2vec 2.0, HuBERT, WavLM "
            f"or Whisper model, not {folder!r}"
        )
    layers: list[Any] = layer if isinstance(layer, list) else [layer]
    if not layers or any(type(number) is not int for number in layers):
        raise UserError(
            f"{config.path}: frontend_conf: layer must be a whole number or a list of some, "
            f"not {layer!r}"
        )
    if len(set(layers)) < len(layers):
        raise UserError(f"{config.path}: frontend_conf: layer names one twice: {layer!r}")
    try:
        return read_ssl(Path(folder), layers, conf.get("architecture"))
    except UserError as error:
        raise UserError(f"{config.path}: frontend_conf: {error}") from None
