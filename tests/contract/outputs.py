"""Properties of models that the contract tests compare."""

import torch
from torch import nn


def output(model: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Encoder output without gradient."""
    with torch.no_grad():
        return model(x, lengths)[0]


def shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor of a model, by name."""
    return {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
