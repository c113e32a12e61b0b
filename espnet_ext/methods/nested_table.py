"""The table of tokens of a nested family: below 32 bits its rows are codes (``methods.codes``)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espnet_ext.methods.codes import (
    CODES,
    Coded,
    decode,
    encode,
    fit_codebooks,
    grid_codebooks,
    row_places,
    token_frequencies,
    with_rest,
)
from espnet_ext.methods.nested_layers import Selection
from espnet_ext.methods.quantise import as_half


class TableCodes(nn.Module):
    """Codes of the rows of a table at one size of their parts, and the vectors that they mean."""

    codes: Tensor
    fitted: Tensor

    def __init__(self, rows: int, width: int, size: int, step: float | None = None):
        """Make place for the codes.

        Args:
            rows: of the table.
            width: of a row.
            size: numbers of a row that share a code; it divides the width.
            step: of a grid of vectors (``codes.grid_codebooks``); None: they are fitted.
        """
        super().__init__()
        self.step = step
        self.books = nn.Parameter(torch.zeros(width // size, CODES, size))
        self.register_buffer("codes", torch.zeros((rows, width // size), dtype=torch.uint8))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, table: Tensor, frequencies: Tensor) -> None:
        """Fit the vectors to a table (rows, width), the first time only.

        ``frequencies``: (rows,), of the tokens.
        """
        if self.fitted:
            return
        with torch.autocast(table.device.type, enabled=False):  # codes of float32, whatever trains
            size = self.books.shape[2]
            if self.step is None:
                books = fit_codebooks(table, size, frequencies)
            else:
                books = grid_codebooks(table, size, self.step, frequencies)
            codes = encode(table, books)
            if self.step is not None:  # many vectors of a grid are unused: zeros need few bytes
                used = torch.zeros_like(books[..., 0]).scatter_(1, codes.t().long(), 1.0)
                books *= used.unsqueeze(2)
            self.codes.copy_(codes)
            self.books.copy_(books)
            self.fitted.fill_(True)


def leave_unfitted(model: nn.Module) -> None:
    """Leave the codes of a model at zero, but for grids: sizes do not depend on them.

    A fit takes long. Codes of a grid are quickly found, and Huffman codes depend on them.
    """
    for part in model.modules():
        if isinstance(part, TableCodes) and part.step is None:
            part.fitted.fill_(True)


class CodedRows(nn.Module):
    """Rows of a table as codes, for each size of their parts; below them those of other tokens.

    The codes are those of the rows when they are first used, at the start of a training. They
    stay, and the vectors that they select are trained.
    """

    kept: Tensor | None
    frequencies: Tensor

    def __init__(
        self,
        weight: Tensor,
        sizes: Iterable[int],
        kept: Tensor | None,
        frequencies: Tensor,
        rest: Any = None,
        step: float | None = None,
    ):
        """Prepare the rows of a table (tokens, width).

        Args:
            weight: the table.
            sizes: numbers of a row that share a code.
            kept: (tokens,), true for those with a row here; None: all.
            frequencies: (tokens,), of the tokens.
            rest: ``CodedRows`` of the others; None: they share one trained row.
            step: of a grid of vectors; None: they are fitted.
        """
        super().__init__()
        tokens, width = weight.shape
        rows = tokens if kept is None else int(kept.sum())
        self.tables = nn.ModuleDict({str(n): TableCodes(rows, width, n, step) for n in sizes})
        self.register_buffer("kept", kept)
        chosen = frequencies if kept is None else frequencies[kept]
        self.register_buffer("frequencies", chosen, persistent=False)
        if kept is not None:
            self.rest = nn.Parameter(torch.zeros(width)) if rest is None else rest
            self.register_buffer("places", row_places(kept, rest is None), persistent=False)

    def decoded(self, weight: Tensor, size: int) -> Tensor:
        """The table (tokens, width) that the codes of a size give, fitted to ``weight``."""
        part = self._part(weight, size)
        found = decode(part.codes, as_half(part.books))
        if self.kept is None:
            return found
        rest: Any = self.rest
        if isinstance(rest, CodedRows):
            others = rest.decoded(weight[~self.kept], rest.only)
        else:
            others = as_half(rest)
        return with_rest(found, others, self.places)

    def coded_as(self, weight: Tensor, size: int) -> Coded:
        """The codes from which ``decoded`` computes what it returns."""
        part = self._part(weight, size)
        books = as_half(part.books.detach())
        if self.kept is None:
            return Coded(part.codes, books)
        rest: Any = self.rest
        if isinstance(rest, CodedRows):
            rest = rest.coded_as(weight[~self.kept], rest.only)
        else:
            rest = as_half(rest.detach())
        return Coded(part.codes, books, self.kept, rest)

    @property
    def only(self) -> int:
        """The size of the parts, where there is one."""
        (size,) = self.tables
        return int(size)

    def _part(self, weight: Tensor, size: int) -> TableCodes:
        """The codes of a size, fitted."""
        found: Any = self.tables[str(size)]
        if not found.fitted:
            if self.kept is not None and isinstance(self.rest, nn.Parameter):
                self._start_rest(weight, self.kept)
            rows = weight if self.kept is None else weight[self.kept]
            found.fit(rows, self.frequencies)
        return found

    @torch.no_grad()
    def _start_rest(self, weight: Tensor, kept: Tensor) -> None:
        if not any(bool(part.fitted) for part in self.tables.children()) and not kept.all():
            self.rest.copy_(weight[~kept].mean(0))


@dataclass(frozen=True)
class TableTokens:
    """Which tokens of a table have which rows below 32 bits.

    Attributes:
        kept: (tokens,), true for those with a separate row; None: all.
        common: (tokens,), true for those that texts use; None: unknown.
        frequencies: (tokens,), of the tokens, up to a factor; None: by their ids.
    """

    kept: Tensor | None = None
    common: Tensor | None = None
    frequencies: Tensor | None = None


class NestedTable(CodedRows):
    """Parametrization of a table of tokens: as it is at 32 bits, below them rows of codes.

    Tokens that are not kept share one row. With ``rare`` the rows of kept tokens that are not
    common have separate codes, of larger parts.
    """

    rounds = True

    def __init__(
        self,
        weight: Tensor,
        selection: Selection,
        sizes: dict[int, int],
        tokens: TableTokens,
        rare: int | None = None,
        step: float | None = None,
    ):
        """Prepare a table (tokens, width).

        Args:
            weight: the table.
            selection: of the family.
            sizes: numbers of a row that share a code, by bits.
            tokens: of the table.
            rare: such numbers of the rows of rare tokens; None: as of all.
            step: see ``CodedRows``.
        """
        kept, common, rest = tokens.kept, tokens.common, None
        frequencies = tokens.frequencies
        if frequencies is None:
            frequencies = token_frequencies(torch.arange(len(weight)))
        if rare is not None:
            common = torch.zeros(len(weight), dtype=torch.bool) if common is None else common
            kept_too = torch.ones_like(common) if kept is None else kept
            common = common & kept_too
            others = None if kept is None else kept[~common]
            rest = CodedRows(weight[~common], [rare], others, frequencies[~common])
            kept = common
            # No text asks for rare tokens: training would only teach to leave them out.
            for part in rest.tables.children():
                part.requires_grad_(False)
        super().__init__(weight, set(sizes.values()), kept, frequencies, rest, step)
        self.selection, self.sizes = selection, sizes

    def forward(self, weight: Tensor) -> Tensor:
        """Return the table (tokens, width) of the selected sub-network."""
        bits = self.selection.member.bits
        if bits == 32:
            return weight
        size = self.sizes[bits]
        return self.selection.once((id(self), size), lambda: self.decoded(weight, size))

    def coded(self, weight: Tensor) -> Coded:
        """Return the codes from which ``forward`` computes what it returns."""
        return self.coded_as(weight, self.sizes[self.selection.member.bits])
