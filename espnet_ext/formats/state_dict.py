"""State dicts on disk: read without executing code, compared before they are loaded."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_ext.errors import UserError, one_line
from espnet_ext.formats.digests import refuse_changed


class DamagedPartError(UserError):
    """A part of torch's archive is not what its check sum says."""


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without executing code.

    Raises:
        UserError: no such file, or not a complete checkpoint of tensors.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        state = read_whole(path)
    except DamagedPartError as error:
        refuse_changed(path)  # of a deployed folder: it says what to do
        raise UserError(f"{path} is not a readable checkpoint: {error}") from None
    except Exception as error:  # torch raises many types for a damaged file
        raise UserError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
    if not isinstance(state, dict) or not all(map(_is_entry, state.items())):
        raise UserError(f"{path} holds no model: give an averaged model or <n>epoch.pth")
    return state


def read_whole(path: Path) -> Any:
    """Read a file of torch's without executing code, after all its check sums were compared.

    ``torch.load`` ignores those of the archive that ``torch.save`` writes.

    Raises:
        DamagedPartError: a part is not what its check sum says.
        UserError: the file is cut short, or it holds more than numbers and containers of them; and
            whatever else torch raises.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        if part is not None:
            raise DamagedPartError(f"the check sum of its part {part} is wrong")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("it holds more than tensors, or is none of torch's files") from None
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):  # goes on with advice for developers of torch
            raise UserError("it is cut short, or none of torch's files") from None
        raise


def compare_state(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise UserError naming the first key, shape or kind in which ``state`` differs.

    A type may be wider or narrower than the model's, but complex or whole numbers are no weights.
    """
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise UserError(f"{path} is of another architecture: it lacks {key}")
        if tensor.shape != state[key].shape:
            raise UserError(
                f"{path} is of another architecture: {key} has shape "
                f"{tuple(state[key].shape)}, in the config {tuple(tensor.shape)}"
            )
        if _kind(tensor) != _kind(state[key]):
            raise UserError(
                f"{path} is of another architecture: {key} is {_name(state[key])}, "
                f"in the config {_name(tensor)}"
            )
    for key in state:
        if key not in expected:
            raise UserError(f"{path} is of another architecture: it holds {key}, the config not")


def _is_entry(entry: tuple[object, object]) -> bool:
    name, tensor = entry
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        return False
    return tensor.layout == torch.strided and not tensor.is_quantized


def _kind(tensor: torch.Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
