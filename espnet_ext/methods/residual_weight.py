"""The weight of a layer that shares a base and has a residual (arXiv 2310.02489, equation 3)."""

import math
from typing import Any

from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import originals, value_before
from espnet_ext.methods.deploy import empty_like
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.shared_linear import SharedLinear, effective_weight


class ResidualWeight(nn.Module):
    """Parametrization of a weight (o, i) or (o, i, 1) as shared base + low-rank + diagonal.

    It is ``Deployable``.
    """

    variant = "shared"
    place = 2  # in a chain (``methods.chains``)

    def __init__(self, weight: Tensor, rank: int, diagonal: bool, start: str = "mean"):
        super().__init__()
        self.start = start
        outputs, inputs = weight.shape[:2]
        if rank > min(outputs, inputs):
            raise UserError(
                f"residual: rank {rank} is more than a weight of {outputs} x {inputs} can have"
            )
        self.down = self.up = self.diagonal = None
        if rank:
            self.down = nn.Parameter(weight.new_empty(rank, inputs))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
            self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        if diagonal:
            self.diagonal = nn.Parameter(weight.new_zeros(min(outputs, inputs)))

    def forward(self, base: Tensor) -> Tensor:
        """Return base + up down + diagonal, of the shape of ``base``."""
        return effective_weight(base, self.down, self.up, self.diagonal)

    def deployed(self, layer: Any, memo: Memo) -> nn.Module:
        """Build the layer of the variant ``shared``, which keeps base and residual separate."""

        def shared(chain: Any, value: Tensor) -> nn.Parameter:
            trained = originals(chain)
            if id(trained[0]) not in memo:
                grad = any(tensor.requires_grad for tensor in trained)
                memo[id(trained[0])] = nn.Parameter(value.detach().clone(), requires_grad=grad)
            return memo[id(trained[0])]

        chains = layer.parametrizations
        weight = shared(chains.weight, value_before(chains.weight, self))
        bias = None if layer.bias is None else shared(chains.bias, layer.bias)
        if self.up is None and self.diagonal is None:
            plain = empty_like(layer)
            plain.weight, plain.bias = weight, bias
            return plain.train(layer.training)
        residual = (
            None if part is None else nn.Parameter(part.detach().clone())
            for part in (self.down, self.up, self.diagonal)
        )
        return SharedLinear(weight, bias, *residual).train(layer.training)
