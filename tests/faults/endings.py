"""How a command may end after a fault."""

from pathlib import Path

from tests.fixtures.finished import one_line
from tests.fixtures.forked import Outcome

REFUSED = "refused by name"
ENDINGS = {REFUSED, "made again", "no effect", "resumed", "read", "kept apart"}


def ending(found: str) -> str:
    """An outcome that is one of ``ENDINGS``."""
    assert found in ENDINGS, found
    return found


def refused_by_name(ended: Outcome, verb: str, path: Path, *others: str) -> None:
    """Assert that the one line names the file, what it is read for, or what is to be made again."""
    line = one_line(ended, verb)
    assert any(name in line for name in (path.name, path.stem, *others)), line
