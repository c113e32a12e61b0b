"""The layers of a nested family: what they compute depends on the sub-network that is chosen."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.methods.nested_options import Member, NestedOptions
from espnet_ext.methods.quantise import fake_quantise, first_scale, integers


@dataclass
class Choice:
    """The sub-network that the layers of a family compute, read by all of them."""

    member: Member
    path: tuple[int, ...] = ()  # the layers up to the one that runs
    running: tuple[Member, ...] = ()  # the members that one pass computes; none: ``member`` alone
    exits: dict[Member, tuple] = field(default_factory=dict)
    rounded: dict[tuple[int, int], Tensor] | None = None  # of this pass, by weight and bits


class NestedWeight(nn.Module):
    """Parametrization of a weight: rounded to the chosen bits, cut to the chosen width.

    The scale is that of the whole weight, also of a part: so a step rounds a weight once for all
    widths, and the integers of a narrow sub-network are among those of a wide one.
    """

    rounds = True  # so it is deployed in the type that it is trained in

    def __init__(self, weight: Tensor, choice: Choice, options: NestedOptions, cut: int | None):
        """``cut``: the dimension of the inner units of a feed-forward network, None elsewhere."""
        super().__init__()
        self.choice, self.per, self.cut = choice, options.per, cut
        self.scales = nn.ParameterDict()
        if options.scale == "learnt":
            for bits in sorted(set(options.bits) - {32}):
                self.scales[str(bits)] = nn.Parameter(first_scale(weight, bits, options.per))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the chosen part (o, ...) of a weight."""
        bits, rounded = self.choice.member.bits, self.choice.rounded
        if bits != 32:
            key = (id(self), bits)
            found = None if rounded is None else rounded.get(key)
            if found is None:
                found = fake_quantise(weight, bits, self.per, self._scale(bits))
            if rounded is not None:
                rounded[key] = found
            weight = found
        return self._cut(weight)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers and scale whose product ``forward`` returns."""
        bits = self.choice.member.bits
        whole, scale = integers(weight, bits, self.per, self._scale(bits))
        if self.cut == 0 and scale.dim():
            scale = self._cut(scale)
        return self._cut(whole), scale

    def _scale(self, bits: int) -> Tensor | None:
        return dict(self.scales.items()).get(str(bits))

    def _cut(self, weight: Tensor) -> Tensor:
        width = self.choice.member.width
        if self.cut is None or width is None or width == weight.shape[self.cut]:
            return weight
        return weight.narrow(self.cut, 0, width)


class NestedBias(nn.Module):
    """Parametrization of the bias of inner units: those of the chosen width."""

    def __init__(self, choice: Choice):
        super().__init__()
        self.choice = choice

    def forward(self, bias: Tensor) -> Tensor:
        """Return the leading part of a bias."""
        return bias[: self.choice.member.width]


class NestedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with statistics for each way that leads to it, one weight and bias."""

    choice: Choice
    first: str  # the key of the largest network, whose statistics are in the usual place
    statistics: nn.ModuleDict

    @classmethod
    def convert(cls, norm: nn.BatchNorm1d, choice: Choice, keys: Sequence[str]) -> None:
        """Give a plain one statistics for every key, in place."""
        norm.__class__ = cls
        assert isinstance(norm, cls)
        norm.choice, norm.first = choice, keys[0]
        # Of these only the statistics are used.
        others = {key: nn.BatchNorm1d(norm.num_features, affine=False) for key in keys[1:]}
        norm.statistics = nn.ModuleDict(others)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, frames) or (batch, channels)."""
        mean, var, count = self._chosen()
        if self.training:
            count.add_(1)
        momentum = 1.0 / float(count) if self.momentum is None else self.momentum
        weight, bias = self.weight, self.bias
        return F.batch_norm(x, mean, var, weight, bias, self.training, momentum, self.eps)

    def deployed(self, memo: dict[int, Any]) -> nn.BatchNorm1d:
        """The plain one of the chosen sub-network."""
        plain = nn.BatchNorm1d(self.num_features, self.eps, self.momentum)
        plain.weight, plain.bias = (copy.deepcopy(p, memo) for p in (self.weight, self.bias))
        names = ("running_mean", "running_var", "num_batches_tracked")
        for name, own in zip(names, self._chosen(), strict=True):
            setattr(plain, name, own.detach().clone())
        return plain.train(self.training)

    def _chosen(self) -> tuple[Tensor, Tensor, Tensor]:
        key = way(self.choice.path, self.choice.member)
        own: Any = self if key == self.first else self.statistics[key]
        return own.running_mean, own.running_var, own.num_batches_tracked


class FrameNorm(nn.LayerNorm):
    """What ``norm: layer`` puts in place of a batch normalisation: each frame for itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, frames) over the channels."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def way(path: tuple[int, ...], member: Member) -> str:
    """The way that leads to a layer: the layers before it and it, width and precision."""
    found = Member(path, member.width, member.bits)
    if path == tuple(range(len(path))):  # all members with these first layers
        return found.name.partition("L")[2].lstrip("-")
    return found.name.replace(".", "_")
