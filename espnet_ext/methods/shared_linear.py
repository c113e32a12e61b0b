"""The deployed layer of ResidualTransformer (arXiv 2310.02489): a shared base and a residual."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def effective_weight(
    base: Tensor, down: Tensor | None, up: Tensor | None, diagonal: Tensor | None
) -> Tensor:
    """Return base + up down + diagonal, of the shape of ``base``: (o, i) or (o, i, 1)."""
    weight = base.flatten(1)  # drops the width of a pointwise convolution
    if up is not None and down is not None:
        weight = weight + up @ down
    if diagonal is not None:
        weight = torch.diagonal_scatter(weight, weight.diagonal() + diagonal)
    return weight.view(base.shape)


def with_residual(
    y: Tensor, x: Tensor, down: Tensor | None, up: Tensor | None, diagonal: Tensor | None
) -> Tensor:
    """Add what a residual makes of x (..., i) to y (..., o), the output of its base."""
    if down is not None and up is not None:
        y = y + F.linear(F.linear(x, down), up)
    if diagonal is not None:
        width = len(diagonal)
        y = y + F.pad(x[..., :width] * diagonal, (0, y.shape[-1] - width))
    return y


class SharedLinear(nn.Module):
    """Linear layer or pointwise convolution with a shared base and a residual.

    The low-rank path costs R (i + o) per frame; ``forward`` does not compute the effective weight.
    Parents that read ``weight`` instead of calling the layer get it. In the state dict, ``weight``
    is the base.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        down: nn.Parameter | None,
        up: nn.Parameter | None,
        diagonal: nn.Parameter | None,
    ):
        super().__init__()
        # Not by assignment: the class has a property of that name.
        self._parameters["weight"] = weight
        self.bias, self.down, self.up, self.diagonal = bias, down, up, diagonal

    @property
    def base(self) -> nn.Parameter:
        """The shared weight (o, i) or (o, i, 1)."""
        found = self._parameters["weight"]
        assert found is not None
        return found

    @property
    def weight(self) -> Tensor:
        """The effective weight, computed at every access."""
        return effective_weight(self.base, self.down, self.up, self.diagonal)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., o), or (batch, i, frames) to (batch, o, frames)."""
        convolution = self.base.dim() == 3
        if convolution:
            x = x.transpose(1, 2)
        y = F.linear(x, self.base.flatten(1), self.bias)
        y = with_residual(y, x, self.down, self.up, self.diagonal)
        return y.transpose(1, 2) if convolution else y
