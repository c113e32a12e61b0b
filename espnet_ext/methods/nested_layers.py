"""The layers of a nested family: what they compute depends on the selected sub-network."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.methods.nested_options import Member, NestedOptions
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.quantise import (
    fake_quantise,
    first_scale,
    has_groups,
    integers,
    scale_by_deviation,
)

LEAST_BITS = 2  # of a weight that needs no more than others
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


Width = Literal["width", "decoder_width"]  # of a member


@dataclass
class Selection:
    """The sub-network that the layers of a family compute; all layers read the same object."""

    member: Member
    family: tuple[Member, ...] = ()  # the largest first
    path: tuple[int, ...] = ()  # the layers up to the one that is running
    together: tuple[Member, ...] = ()  # the members that one pass computes; empty: ``member`` only
    outputs: dict[Member, Any] = field(default_factory=dict)  # of the last layer of each of these
    rounded: dict[tuple[int, int], Tensor] | None = None  # inside ``rounding_once``, by weight

    def once(self, key: tuple[int, int], compute: Callable[[], Tensor]) -> Tensor:
        """Return what ``compute`` returns, inside ``rounding_once`` computed once for a key."""
        if self.rounded is None:
            return compute()
        if key not in self.rounded:
            self.rounded[key] = compute()
        return self.rounded[key]


class NestedWeight(nn.Module):
    """Parametrization of a weight: rounded to the selected bits, cut to the selected width.

    The scale of a part is that of the whole weight: a step thus rounds a weight once for all
    widths, and the integers of a narrow sub-network are among those of a wide one.
    """

    place, rounds = 1, True  # in a chain (``methods.chains``)

    def __init__(
        self,
        weight: Tensor,
        selection: Selection,
        options: NestedOptions,
        cut: int | None,
        least: int = LEAST_BITS,
        width: Width = "width",
    ):
        """Prepare the learnt scales, if any.

        Args:
            weight: (o, ...).
            selection: of the family.
            options: of the family.
            cut: the dimension of the inner units of a feed-forward network, else None.
            least: bits that the weight has in members with fewer.
            width: which width of the sub-network it is cut to.
        """
        super().__init__()
        self.selection, self.per, self.cut, self.least = selection, options.grain, cut, least
        self.width, self.sorted = width, options.sort_units
        self.step: float | None = None  # of scale: deviation
        if options.scale == "deviation" and not isinstance(options.step, Mapping):
            self.step = options.step
        self.scales = nn.ParameterDict()
        if options.scale == "learnt":
            for bits in sorted({max(bits, least) for bits in options.bits} - {32}):
                self.scales[str(bits)] = nn.Parameter(first_scale(weight, bits, self.per))

    @property
    def bits(self) -> int:
        """Bits of the weight in the selected sub-network."""
        return max(self.selection.member.bits, self.least)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the selected part (o, ...) of a weight."""
        bits = self.bits
        if bits == 32:
            return self._cut(weight)
        rounded = self.selection.once(
            (id(self), bits),
            lambda: fake_quantise(weight, bits, self.per, self._scale(weight, bits)),
        )
        return self._cut(rounded)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers and the scale whose product ``forward`` returns."""
        bits = self.bits
        whole, scale = integers(weight, bits, self.per, self._scale(weight, bits))
        if self.cut == 0 and scale.dim():
            scale = self._cut(scale)
        elif self.cut == 1 and has_groups(scale.shape):
            kept = self._cut(whole).shape[1] * scale.shape[1] // whole.shape[1]
            scale = scale.narrow(1, 0, kept)
        return self._cut(whole), scale

    def _scale(self, weight: Tensor, bits: int) -> Tensor | None:
        """The scale of a weight; None: by maximum, as that of weights that need many bits."""
        if self.step is not None and self.least == LEAST_BITS:
            return scale_by_deviation(weight, self.step, self.per)
        return dict(self.scales.items()).get(str(bits))

    def _cut(self, weight: Tensor) -> Tensor:
        width = getattr(self.selection.member, self.width)
        if self.cut is None or width is None or width == weight.shape[self.cut]:
            return weight
        return weight.narrow(self.cut, 0, width)


class NestedBias(nn.Module):
    """Parametrization of the bias of inner units: those of the selected width."""

    place = 1

    def __init__(self, selection: Selection, width: Width = "width"):
        super().__init__()
        self.selection, self.width = selection, width

    def forward(self, bias: Tensor) -> Tensor:
        """Return the leading part of a bias."""
        return bias[: getattr(self.selection.member, self.width)]


class NestedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with one weight and bias and several sets of statistics.

    There is one set for each sequence of layers up to this one, at each width and precision. That
    of the largest network is stored as in a plain normalisation.
    """

    selection: Selection
    first: str  # key of the largest network's statistics
    statistics: nn.ModuleDict

    @classmethod
    def convert(cls, norm: nn.BatchNorm1d, selection: Selection, keys: Sequence[str]) -> None:
        """Give a plain normalisation statistics for every key, in place."""
        norm.__class__ = cls
        assert isinstance(norm, cls)
        norm.selection, norm.first = selection, keys[0]
        # Only their statistics are used.
        others = {key: nn.BatchNorm1d(norm.num_features, affine=False) for key in keys[1:]}
        norm.statistics = nn.ModuleDict(others)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, frames) or (batch, channels)."""
        mean, var, count = self._selected()
        if self.training:
            count.add_(1)
        momentum = 1.0 / float(count) if self.momentum is None else self.momentum
        weight, bias = self.weight, self.bias
        return F.batch_norm(x, mean, var, weight, bias, self.training, momentum, self.eps)

    def deployed(self, memo: Memo) -> nn.BatchNorm1d:
        """Return the plain normalisation of the selected sub-network."""
        plain = nn.BatchNorm1d(self.num_features, self.eps, self.momentum)
        plain.weight, plain.bias = (copy.deepcopy(p, memo) for p in (self.weight, self.bias))
        for name, tensor in zip(STATISTICS, self._selected(), strict=True):
            setattr(plain, name, tensor.detach().clone())
        return plain.train(self.training)

    def _selected(self) -> list[Tensor]:
        key = statistics_key(self.selection.path, self.selection.member)
        source: Any = self if key == self.first else self.statistics[key]
        return [getattr(source, name) for name in STATISTICS]


class FrameNorm(nn.LayerNorm):
    """Normalisation of each frame, which ``norm: layer`` puts in place of batch normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, frames) over the channels."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def statistics_key(path: tuple[int, ...], member: Member) -> str:
    """Return the key of batch statistics: the layers up to a norm, width and precision.

    Members whose first layers are ``path`` share a key if width and precision are equal.
    """
    found = Member(path, member.width, member.bits)
    if path == tuple(range(len(path))):
        return found.name.partition("L")[2].lstrip("-")
    return found.name.replace(".", "_")
