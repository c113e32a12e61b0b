"""State dicts on disk: read without executing code, compared before they are loaded."""

from pathlib import Path

import torch
from torch import nn

from espnet_ext.errors import UserError, one_line


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without executing code.

    Raises:
        UserError: no such file, or not a complete checkpoint of tensors.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise UserError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
    if not isinstance(state, dict) or not all(map(_is_entry, state.items())):
        raise UserError(f"{path} holds no model: give an averaged model or <n>epoch.pth")
    return state


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
