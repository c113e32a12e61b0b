"""State dicts on disk: read without executing code, compared before they are loaded."""

from pathlib import Path

import torch
from torch import nn

from espnet_ext.errors import UserError


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
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path} is not a readable checkpoint: {reason}") from None
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(f"{path} holds no model: give an averaged model or <n>epoch.pth")
    return state


def compare_state(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise UserError naming the first key or shape in which ``state`` differs from the model."""
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise UserError(f"{path} is of another architecture: it lacks {key}")
        if tensor.shape != state[key].shape:
            raise UserError(
                f"{path} is of another architecture: {key} has shape "
                f"{tuple(state[key].shape)}, in the config {tuple(tensor.shape)}"
            )
    for key in state:
        if key not in expected:
            raise UserError(f"{path} is of another architecture: it holds {key}, the config not")
