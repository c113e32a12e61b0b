"""Tables of text that corpora come with."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_utf8


def inside(root: Path, name: str) -> Path:
    """Return ``root / name`` of a name that a corpus's list has.

    Raises:
        UserError: the path leaves the folder.
    """
    parts = Path(name).parts
    if not name or Path(name).is_absolute() or ".." in parts or not name.isprintable():
        raise UserError(f"{root}: {name!r} of a list leaves the folder")
    return root / name


@contextlib.contextmanager
def reading_csv(path: Path) -> Iterator[TextIO]:
    """Open a file for ``csv``'s readers.

    Raises:
        UserError: inside the block: no such file, not UTF-8, or not CSV (a field of over 128 kB).
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            yield stream
    except FileNotFoundError:
        raise UserError(f"no {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert it first") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a table: {error}") from None


def read_tsv(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table, by the names of its columns; tabs separate, the first line names.

    A quotation mark is an ordinary character: a sentence may begin with one that nothing closes.

    Args:
        path: the file, UTF-8.
        needed: columns that must be there.

    Raises:
        UserError: no such file, not UTF-8, a column is missing, or a row has too few or too many.
    """
    lines = read_utf8(path).split("\n")
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
