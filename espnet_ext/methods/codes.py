"""Product quantisation of a table: every row is a sequence of codes (Jegou et al., 2011).

The columns are cut into parts of a few numbers. Each part has a codebook of 256 vectors, found by
k-means over the rows, and a row stores one byte for each of its parts: with parts of 4 numbers 2
bits a number. Rows that few texts use keep their place, where cutting a vocabulary would lose them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CODES = 256  # vectors of a codebook: one byte each
_ROWS = 8192  # that k-means looks at
_ROUNDS = 8
_SEED = 0


@dataclass(frozen=True)
class Coded:
    """A table as codes of parts of its rows.

    Attributes:
        codes: (rows, parts), uint8.
        books: (parts, 256, size), numbers of float16 in float32.
        kept: (tokens,), true for tokens with a row here; None: all have one.
        rest: of the other tokens: the row that they share, (parts x size,), numbers of float16 in
            float32, or a table of theirs, in their order.
    """

    codes: Tensor
    books: Tensor
    kept: Tensor | None = None
    rest: "Tensor | Coded | None" = None

    def dequantised(self) -> Tensor:
        """The table that the layer computes with, (tokens, parts x size) float32."""
        found = decode(self.codes, self.books)
        if self.kept is None or self.rest is None:
            return found
        shared = isinstance(self.rest, Tensor)
        rest = self.rest if isinstance(self.rest, Tensor) else self.rest.dequantised()
        return with_rest(found, rest, row_places(self.kept, shared))


def row_places(kept: Tensor, shared: bool) -> Tensor:
    """For each token (tokens,) the place of its row, first those of the kept ones.

    ``shared``: all others have one row; else each has one, in their order.
    """
    others = kept.sum() + (0 if shared else (~kept).long().cumsum(0) - 1)
    return torch.where(kept, kept.long().cumsum(0) - 1, others)


def with_rest(table: Tensor, rest: Tensor, places: Tensor) -> Tensor:
    """Return the table (tokens, width) of kept rows (rows, width) and the row or rows of the rest.

    ``places``: of ``row_places``.
    """
    return torch.nn.functional.embedding(places, torch.cat([table, rest.view(-1, table.shape[1])]))


def fit_codebooks(table: Tensor, size: int) -> Tensor:
    """Return codebooks (parts, 256, size) of a table (rows, parts x size), numbers of float16.

    The same table gives the same codebooks.
    """
    generator = torch.Generator().manual_seed(_SEED)
    chosen = torch.randperm(len(table), generator=generator)[:_ROWS].to(table.device)
    parts = _parts(table[chosen], size)
    first = torch.arange(CODES, device=table.device) % parts.shape[1]
    books = parts[:, first].clone()  # rows in random order
    for _ in range(_ROUNDS):
        for book, part in zip(books, parts, strict=True):
            codes = _nearest(book, part)
            total = torch.zeros_like(book).index_add_(0, codes, part)
            count = torch.bincount(codes, minlength=CODES).unsqueeze(1)
            book.copy_(torch.where(count > 0, total / count.clamp(min=1), book))
    return books.half().float()


def encode(table: Tensor, books: Tensor) -> Tensor:
    """Return the codes (rows, parts), uint8, of the nearest vectors of the codebooks."""
    parts = _parts(table, books.shape[2])
    found = [_nearest(book, part) for book, part in zip(books, parts, strict=True)]
    return torch.stack(found, 1).to(torch.uint8)


def decode(codes: Tensor, books: Tensor) -> Tensor:
    """Return the table (rows, parts x size) of codes (rows, parts), in the type of the books."""
    first = torch.arange(len(books), device=codes.device) * books.shape[1]
    found = torch.nn.functional.embedding(codes.long() + first, books.flatten(0, 1))
    return found.flatten(1)


def _parts(table: Tensor, size: int) -> Tensor:
    """Cut a table (rows, width) into parts (width / size, rows, size), float32."""
    return table.detach().float().unflatten(1, (-1, size)).transpose(0, 1).contiguous()


def _nearest(book: Tensor, part: Tensor) -> Tensor:
    """For each row of a part (rows, size) the place of the nearest vector in the book."""
    # |p - b|^2 without |p|^2, which is the same for all.
    return torch.addmm(book.square().sum(1), part, book.T, alpha=-2.0).argmin(1)
