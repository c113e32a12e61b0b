"""The layers of a nested family: what they compute depends on the selected sub-network."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.methods.codes import (
    CODES,
    Coded,
    decode,
    encode,
    fit_codebooks,
    row_places,
    with_rest,
)
from espnet_ext.methods.nested_options import Member, NestedOptions
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.quantise import as_half, fake_quantise, first_scale, has_groups, integers

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

    rounds = True

    def __init__(
        self,
        weight: Tensor,
        selection: Selection,
        options: NestedOptions,
        cut: int | None,
        least: int = 2,
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
        scale = self._scale(bits)
        rounded = self.selection.once(
            (id(self), bits), lambda: fake_quantise(weight, bits, self.per, scale)
        )
        return self._cut(rounded)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers and the scale whose product ``forward`` returns."""
        bits = self.bits
        whole, scale = integers(weight, bits, self.per, self._scale(bits))
        if self.cut == 0 and scale.dim():
            scale = self._cut(scale)
        elif self.cut == 1 and has_groups(scale.shape):
            kept = self._cut(whole).shape[1] * scale.shape[1] // whole.shape[1]
            scale = scale.narrow(1, 0, kept)
        return self._cut(whole), scale

    def _scale(self, bits: int) -> Tensor | None:
        return dict(self.scales.items()).get(str(bits))

    def _cut(self, weight: Tensor) -> Tensor:
        width = getattr(self.selection.member, self.width)
        if self.cut is None or width is None or width == weight.shape[self.cut]:
            return weight
        return weight.narrow(self.cut, 0, width)


class TableCodes(nn.Module):
    """Codes of the rows of a table at one size of their parts, and the vectors that they mean."""

    codes: Tensor
    fitted: Tensor

    def __init__(self, rows: int, width: int, size: int):
        """``size``: numbers of a row that share a code; it divides the width."""
        super().__init__()
        self.books = nn.Parameter(torch.zeros(width // size, CODES, size))
        self.register_buffer("codes", torch.zeros((rows, width // size), dtype=torch.uint8))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, table: Tensor) -> None:
        """Fit the vectors to a table (rows, width), the first time only."""
        if not self.fitted:
            self.books.copy_(fit_codebooks(table, self.books.shape[2]))
            self.codes.copy_(encode(table, self.books))
            self.fitted.fill_(True)


class NestedTable(nn.Module):
    """Parametrization of a table of tokens: as it is at 32 bits, below them rows of codes.

    The codes are those of the table when it is first used so, at the start of a training. They
    stay, and the vectors that they stand for are trained. Tokens that are not ``kept`` share one
    trained row.
    """

    rounds = True
    kept: Tensor | None

    def __init__(
        self, weight: Tensor, selection: Selection, sizes: dict[int, int], kept: Tensor | None
    ):
        """Prepare a table (tokens, width).

        Args:
            weight: the table.
            selection: of the family.
            sizes: numbers of a row that share a code, by bits.
            kept: (tokens,), true for those with a row of their own; None: all.
        """
        super().__init__()
        self.selection, self.sizes = selection, sizes
        tokens, width = weight.shape
        rows = tokens if kept is None else int(kept.sum())
        found = {str(size): TableCodes(rows, width, size) for size in set(sizes.values())}
        self.tables = nn.ModuleDict(found)
        self.register_buffer("kept", kept)
        if kept is not None:
            self.rest = nn.Parameter(torch.zeros(width))
            self.register_buffer("places", row_places(kept), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the table (tokens, width) of the selected sub-network."""
        if self.selection.member.bits == 32:
            return weight
        part = self._part(weight)
        return self.selection.once((id(self), self._size), lambda: self._decoded(part))

    def coded(self, weight: Tensor) -> Coded:
        """Return the codes from which ``forward`` computes what it returns."""
        part = self._part(weight)
        rest = None if self.kept is None else as_half(self.rest.detach())
        return Coded(part.codes, as_half(part.books.detach()), self.kept, rest)

    @property
    def _size(self) -> int:
        return self.sizes[self.selection.member.bits]

    def _part(self, weight: Tensor) -> TableCodes:
        """The codes of the selected sub-network, fitted."""
        found: Any = self.tables[str(self._size)]
        if not found.fitted:
            if self.kept is not None:
                self._start_rest(weight, self.kept)
            found.fit(weight if self.kept is None else weight[self.kept])
        return found

    @torch.no_grad()
    def _start_rest(self, weight: Tensor, kept: Tensor) -> None:
        if not any(bool(part.fitted) for part in self.tables.children()) and not kept.all():
            self.rest.copy_(weight[~kept].mean(0))

    def _decoded(self, part: TableCodes) -> Tensor:
        found = decode(part.codes, as_half(part.books))
        if self.kept is None:
            return found
        return with_rest(found, as_half(self.rest), self.places)


class NestedBias(nn.Module):
    """Parametrization of the bias of inner units: those of the selected width."""

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
