"""Parts of a list of work, for several machines: ``--part K/N``."""

import argparse
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Part:
    """The ``number``-th of ``total`` parts, from 1."""

    number: int
    total: int

    def of[T](self, items: Sequence[T]) -> Sequence[T]:
        """Every ``total``-th item from the ``number``-th on."""
        return items[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}_of_{self.total}"

    @property
    def all(self) -> list["Part"]:
        """This one and its others, in order."""
        return [Part(number, self.total) for number in range(1, self.total + 1)]


def begun(folder: Path, done: Callable[[Part], bool]) -> list[Part]:
    """All parts of the work that was begun in parts under ``folder``; none if there is none.

    Args:
        folder: with a folder K_of_N for each part.
        done: True if a part is whole and up to date. Of several N that with most such parts counts.
    """
    found = [re.fullmatch(r"(\d+)_of_(\d+)", path.name) for path in folder.glob("*_of_*")]
    parts = [Part(int(name[1]), int(name[2])) for name in found if name]
    totals = Counter(part.total for part in parts if done(part))
    return Part(1, totals.most_common(1)[0][0]).all if totals else []


def remove_parts(folder: Path) -> None:
    """Remove the parts under ``folder``, if any: the whole is up to date and needs none.

    A kill between joining and removing leaves them to the next call.
    """
    shutil.rmtree(folder, ignore_errors=True)


def part(word: str) -> Part:
    """Return the part K/N; a type for argparse."""
    k, _, n = word.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"needs K/N with K from 1 to N, not {word!r}")
    return Part(int(k), int(n))
