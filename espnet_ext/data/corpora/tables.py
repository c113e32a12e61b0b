"""Tables of text that corpora come with."""

from collections.abc import Iterator
from pathlib import Path

from espnet_ext.errors import UserError, nearest


def read_tsv(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table, by the names of its columns; tabs separate, the first line names.

    A quotation mark is an ordinary character: a sentence may begin with one that nothing closes.

    Args:
        path: the file, UTF-8.
        needed: columns that must be there.

    Raises:
        UserError: no such file, not UTF-8, a column is missing, or a row has too few or too many.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"no {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    header = lines[0].rstrip("\r").split("\t")
    for name in needed:
        if name not in header:
            raise UserError(f"{path}: no column {nearest(name, header)}")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            raise UserError(f"{path}: line {number} has {len(cells)} columns, not {len(header)}")
        yield dict(zip(header, cells, strict=True))
