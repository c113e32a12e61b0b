"""Base class of stacks of the transformers package; reading and writing their folders."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espnet_ext.encoders.pretrained.stack import Stack
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import atomic_path
from espnet_ext.methods.tensors import frame_mask

# What transformers and safetensors raise for a folder that is incomplete or does not fit.
LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)
_OF_FILES = ("architectures", "dtype", "transformers_version", "_name_or_path")
# A weight of pre-training, which a stack does not use.
_MASKING = "masked_spec_embed"


class TransformersStack(Stack):
    """A stack around a model of transformers.

    The class attributes are keys of the model's config: number of layers, width of the
    feed-forward networks, and width of a frame.
    """

    layers_key: ClassVar[str]
    inner_width_key: ClassVar[str]
    width_key: ClassVar[str]

    def __init__(self, model: Any, family: str, extractor: Any):
        """Wrap a model; ``extractor`` is the feature extractor that its folder describes."""
        super().__init__(family, getattr(model.config, self.layers_key))
        self.model = model
        self.extractor = extractor

    @property
    def holder(self) -> Any:
        """The module that has the layers and their final norm."""
        raise NotImplementedError

    @property
    def layers(self) -> nn.ModuleList:
        return self.holder.layers

    @property
    def width(self) -> int:
        return getattr(self.model.config, self.width_key)

    @property
    def architecture(self) -> dict[str, Any]:
        found = self.model.config.to_diff_dict()
        return {key: value for key, value in found.items() if key not in _OF_FILES}

    def save(self, folder: str | Path) -> None:
        """Write the folder that transformers reads: config, weights, feature extractor."""
        with quiet(), atomic_path(folder) as temporary:
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    def set_sizes(self, places: Sequence[int], width: int | None) -> None:
        self.kept = tuple(self.kept[place] for place in places)
        setattr(self.model.config, self.layers_key, len(places))
        setattr(self.model.config, self.inner_width_key, width)

    def _keep(self, places: Sequence[int]) -> None:
        self.holder.layers = nn.ModuleList(self.layers[place] for place in places)
        setattr(self.model.config, self.layers_key, len(places))


def random_model(config_class: Any, model_class: Any, conf: dict[str, Any]) -> Any:
    """Build a model of random weights from keys of its config.

    Raises:
        UserError: an unknown key, or values that describe no model.
    """
    family, known = config_class.model_type, config_class().to_dict()
    for key in conf:
        if key not in known:
            raise UserError(f"architecture: unknown key of {family} {nearest(str(key), known)}")
    try:
        return model_class(config_class(**conf))
    except Exception as error:  # of transformers' checks, many types
        reason = first_line(error)
        raise UserError(f"architecture: no {family} can be built from it: {reason}") from None


def read_model(loader: Any, name: str, local: bool) -> Any:
    """Build a model and load its weights; all of them must be there and fit.

    Raises:
        UserError: they do not, or the folder is damaged.
    """
    try:
        model, found = loader.from_pretrained(
            name,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise UserError(f"{name}: cannot load it: {first_line(error)}") from None
    except Exception as error:  # safetensors' exception, which comes from Rust
        if type(error).__module__.split(".")[0] != "builtins" and "afetensor" in repr(error):
            raise UserError(f"{name}: damaged model.safetensors: {first_line(error)}") from None
        raise
    lacking = sorted(key for key in found["missing_keys"] if _MASKING not in key)
    if lacking:
        raise UserError(f"{name}: its weights are of another model: they lack {lacking[0]}")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn off transformers' progress bars, and its reports except errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def mask_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Return (batch, time, width) with zeros after the end of each utterance."""
    return x.masked_fill(~frame_mask(lengths, x.shape[1], x.device).unsqueeze(-1), 0.0)


def attention_mask(h: Tensor, lengths: Tensor) -> Tensor | None:
    """Summand (batch, 1, time, time) of attention scores; None if nothing is masked."""
    inside = frame_mask(lengths, h.shape[1], h.device)
    if inside.all():
        return None
    return summand(inside, h)[:, None, None, :].expand(-1, 1, inside.shape[1], -1)


def summand(seen: Tensor, like: Tensor) -> Tensor:
    """Return summands of attention scores, in the type of ``like``: 0 where ``seen`` is true."""
    mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(~seen, torch.finfo(like.dtype).min)
