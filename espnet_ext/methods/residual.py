"""ResidualTransformer: layers that share weights, each with a small residual (arXiv 2310.02489).

The L layers of a stack fall into groups of K. All layers of a group share every projection
weight U and its bias; layer l adds a residual of its own: W_l = U + A_l B_l + D_l (equations
2 and 3), with A B of rank R and D a rectangular diagonal. Normalisation and dropout stay per
layer. A weight is (o, i) here, so the paper's A (i, R) is ``down`` transposed and its B (R, o)
is ``up`` transposed: W_l = U + up down + D.

``up`` and ``diagonal`` start at zero: training starts at the sharing-only model.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, skip_init

from espnet_ext.errors import UserError
from espnet_ext.methods.sites import Layer, check_sites, find_layers, tied_groups

FORMS = ("train", "shared")
# A layer of a numbered stack: its stack, its number, the rest of its name.
_IN_STACK = re.compile(r"^((?:.*\.)?(?:encoders|layers))\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class ResidualOptions:
    """Options of ResidualTransformer, as written under ``encoder_conf: {residual: ...}``.

    Attributes:
        share: K >= 1, layers in a group (the last group may be smaller), or the list of all
            groups' sizes, whose sum is the number of layers.
        rank: R >= 0 of the low-rank part; 0 leaves it out.
        diagonal: whether there is a diagonal part. Without both, layers only share.
        sites: which layers share; the paper's are the six projections.
        form: ``train``, or ``shared``: the layers that deploying to ``shared`` writes.
    """

    share: int | Sequence[int] = 3
    rank: int = 16
    diagonal: bool = True
    sites: Sequence[str] = ("qkv", "project", "ffn")
    form: str = "train"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", check_sites(self.sites))
        if {"cls", "all"} & set(self.sites):
            raise UserError("residual: only layers of a stack can share; sites cls, all cannot")
        sizes = [self.share] if isinstance(self.share, int) else self.share
        sizes = sizes if isinstance(sizes, list | tuple) else []
        if not sizes or any(type(k) is not int or k < 1 for k in sizes):
            raise UserError(
                "residual: share must be a whole number of at least 1 or a list of such, "
                f"not {self.share!r}"
            )
        if type(self.rank) is not int or self.rank < 0:
            raise UserError(f"residual: rank must be a whole number of at least 0, not {self.rank}")
        if type(self.diagonal) is not bool:
            raise UserError(f"residual: diagonal must be true or false, not {self.diagonal!r}")
        if self.form not in FORMS:
            raise UserError(f"residual: form must be one of {', '.join(FORMS)}, not {self.form!r}")


def group_numbers(options: ResidualOptions, layers: int) -> list[int]:
    """Return the group of each of ``layers`` layers, floor(l / K) for a single K.

    Raises:
        UserError: the groups do not fit the number of layers.
    """
    share = options.share
    if isinstance(share, int):
        if share > layers:
            raise UserError(f"residual: share {share} is more than the encoder's {layers} layers")
        return [layer // share for layer in range(layers)]
    if sum(share) != layers:
        raise UserError(
            f"residual: the groups {list(share)} hold {sum(share)} layers, the encoder has {layers}"
        )
    return [group for group, size in enumerate(share) for _ in range(size)]


class ResidualWeight(nn.Module):
    """Parametrization of a weight (o, i) or (o, i, 1) as shared base + low-rank + diagonal."""

    variant = "shared"  # the form, besides merged layers, that ``deployed`` writes

    def __init__(self, weight: Tensor, rank: int, diagonal: bool):
        super().__init__()
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
        weight = base.flatten(1)  # drops the width of a pointwise convolution
        if self.up is not None:
            weight = weight + self.up @ self.down
        if self.diagonal is not None:
            weight = torch.diagonal_scatter(weight, weight.diagonal() + self.diagonal)
        return weight.view(base.shape)

    def deployed(self, layer: nn.Module, memo: dict[int, Any]) -> nn.Module:
        """Build the layer of the form ``shared``: the base kept once, the residual apart.

        ``memo`` maps the id of a trained tensor to the one that replaces it.
        """
        tied = [layer.parametrizations.weight.original]
        if layer.bias is not None:
            tied.append(layer.parametrizations.bias.original)
        for old in tied:
            if id(old) not in memo:
                memo[id(old)] = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
        weight, *bias = [memo[id(old)] for old in tied]
        if self.up is None and self.diagonal is None:
            return _plain(layer, weight, bias[0] if bias else None)
        own = [None if p is None else nn.Parameter(p.detach().clone()) for p in self._parts()]
        return SharedLinear(weight, bias[0] if bias else None, *own).train(layer.training)

    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.down, self.up, self.diagonal


class SharedLinear(nn.Module):
    """Linear layer or pointwise convolution whose base is shared and whose residual is its own.

    The low-rank path costs R (i + o) a frame; no weight of the layer's own is ever formed.
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
        self.weight, self.bias = weight, bias
        self.down, self.up, self.diagonal = down, up, diagonal

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., o), or (batch, i, frames) to (batch, o, frames)."""
        convolution = self.weight.dim() == 3
        if convolution:
            x = x.transpose(1, 2)
        y = F.linear(x, self.weight.flatten(1), self.bias)
        if self.up is not None:
            y = y + F.linear(F.linear(x, self.down), self.up)
        if self.diagonal is not None:
            width = len(self.diagonal)
            y = y + F.pad(x[..., :width] * self.diagonal, (0, y.shape[-1] - width))
        return y.transpose(1, 2) if convolution else y


def _plain(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """A plain layer like ``layer`` with the given tensors, in its mode."""
    plain: nn.Module
    kind = {"bias": bias is not None, "dtype": weight.dtype, "device": weight.device}
    if weight.dim() == 3:
        plain = skip_init(nn.Conv1d, weight.shape[1], weight.shape[0], 1, **kind)
    else:
        plain = skip_init(nn.Linear, weight.shape[1], weight.shape[0], **kind)
    plain.weight, plain.bias = weight, bias
    return plain.train(layer.training)


def share_layers(units: Sequence[Sequence[nn.Module]], options: ResidualOptions) -> None:
    """Give all layers one base, and every unit a residual of its own, in place.

    A unit is a layer, or layers that are tied and stay so. A base that only one unit uses
    gets no residual: there is nothing to differ from.
    """
    shared = len(units) > 1
    base = units[0][0]
    for first, *others in units:
        if parametrize.is_parametrized(first):
            raise UserError("residual: this layer already has a method; one method a layer")
        rank, diagonal = (options.rank, options.diagonal) if shared else (0, False)
        weight = ResidualWeight(first.weight, rank, diagonal)
        # unsafe: torch's check would compute every weight once more.
        parametrize.register_parametrization(first, "weight", weight, unsafe=True)
        names = ["weight"]
        if first.bias is not None:
            parametrize.register_parametrization(first, "bias", nn.Identity(), unsafe=True)
            names.append("bias")
        for name in names if first is not base else ():
            first.parametrizations[name].original = base.parametrizations[name].original
        for other in others:
            for name in names:
                parametrize.register_parametrization(other, name, nn.Identity(), unsafe=True)
            other.parametrizations.update(first.parametrizations.items())


def share_layer(layer: nn.Module, options: ResidualOptions) -> None:
    """Parametrize one layer alone, which has nothing to share: its weight is the base."""
    share_layers([[layer]], options)


def apply_residual(module: nn.Module, options: ResidualOptions) -> nn.Module:
    """Share the layers of every numbered stack in ``module``, in place; return ``module``.

    Raises:
        UserError: there is no stack, or groups or rank do not fit it.
    """
    found = [x for x in find_layers(module, options.sites) if _IN_STACK.match(x.name)]
    if not found:
        raise UserError(f"residual: {type(module).__name__} has no numbered stack of layers")
    groups: dict[tuple, list[list[nn.Module]]] = {}
    for unit in tied_groups(module, found):
        key = _group_key(module, unit[0], options)
        groups.setdefault(key, []).append([layer.module for layer in unit])
    for units in groups.values():
        share_layers(units, options)
    if options.form == "shared":
        _replace(module)
    return module


def _group_key(module: nn.Module, layer: Layer, options: ResidualOptions) -> tuple:
    """What two layers must have in common to share: stack, group, name in the block, shape."""
    match = _IN_STACK.match(layer.name)
    assert match is not None
    stack, number, name = match.groups()
    size = len(list(module.get_submodule(stack).children()))
    group = group_numbers(options, size)[int(number)]
    return stack, group, name, tuple(layer.module.weight.shape), layer.module.bias is None


def _replace(module: nn.Module) -> None:
    """Put the deployed form of every parametrized layer in its place."""
    memo: dict[int, Any] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is None or not parametrize.is_parametrized(child):
                continue
            if id(child) not in memo:
                weight: Any = child.parametrizations["weight"]
                memo[id(child)] = (child, weight[0].deployed(child, memo))
            parent._modules[name] = memo[id(child)][1]
