"""Product quantisation of a table: every row is a sequence of codes (Jegou et al., 2011).

The columns are cut into parts of a few numbers. Each part has a codebook of 256 vectors, found by
k-means over the rows, or is a grid, and a row stores one byte for each of its parts: with parts of
4 numbers 2 bits a number. Rows that few texts use keep their place, where cutting a vocabulary
would lose them; frequent ones count more when the vectors are found.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CODES = 256  # vectors of a codebook: one byte each
MOST_IN_GRID = 4  # numbers that share a code of a grid: four levels of each
_ROUNDS = 8
_HEAD = 100.0  # the first tokens of a vocabulary, letters among them, are about as frequent
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


def token_frequencies(ids: Tensor) -> Tensor:
    """Return how frequent tokens are by their ids (tokens,): Zipf's law, ids in order of frequency.

    A BPE vocabulary lists its most frequent merges first, and a unigram one its likeliest pieces.
    """
    return 1.0 / (ids.float() + _HEAD)


def fit_codebooks(table: Tensor, size: int, frequencies: Tensor) -> Tensor:
    """Return codebooks (parts, 256, size) of a table (rows, parts x size), numbers of float16.

    The same table gives the same codebooks.

    Args:
        table: the rows.
        size: numbers of a row that share a code.
        frequencies: (rows,), above 0: the weight of a row's error.
    """
    if len(table) == 0:  # all tokens are in the other part of the table
        return table.new_zeros((table.shape[1] // size, CODES, size), dtype=torch.float32)
    generator = torch.Generator().manual_seed(_SEED)
    drawn = frequencies.cpu().multinomial(min(CODES, len(table)), generator=generator)
    parts = _parts(table, size)
    books = parts[:, drawn[torch.arange(CODES) % len(drawn)].to(table.device)].clone()
    weights = frequencies.to(parts).unsqueeze(1)
    for _ in range(_ROUNDS):
        for book, part in zip(books, parts, strict=True):
            codes = _nearest(book, part)
            total = torch.zeros_like(book).index_add_(0, codes, part * weights)
            weight = torch.zeros_like(book[:, :1]).index_add_(0, codes, weights)
            book.copy_(torch.where(weight > 0, total / weight, book))
    return books.half().float()


def grid_codebooks(table: Tensor, size: int, step: float, frequencies: Tensor) -> Tensor:
    """Return codebooks (parts, 256, size) that round each number of a row alone, in equal steps.

    Arguments are those of ``fit_codebooks``. A column has 256 (``size`` 1), 16 (2), 6 (3) or 4 (4)
    levels around its mean; ``step`` is in root mean squares of the numbers without their means.
    Such rounding needs more codes than ``fit_codebooks`` for the same error, but some of them are
    frequent: Huffman codes make it the smaller (``formats.huffman``). The sums are in float64, so
    that another order of their terms hardly ever gives other numbers.
    """
    levels = int(CODES ** (1 / size) + 1e-9)
    wide, weights = table.detach().double(), frequencies.to(table.device).double().unsqueeze(1)
    mean = (wide * weights).sum(0) / weights.sum().clamp(min=1e-30)
    deviation = (wide - mean).square().mean().sqrt() if len(wide) else wide.new_zeros(())
    places = torch.arange(CODES, device=table.device).unsqueeze(1)
    digits = places // levels ** torch.arange(size, device=table.device) % levels
    steps = (digits - levels // 2) * (step * deviation)  # (256, size)
    return (mean.view(-1, 1, size) + steps).half().float()


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
