"""How a command may end after a fault."""

from pathlib import Path

from tests.fixtures.forked import Outcome

REFUSED = "refused by name"
ENDINGS = {REFUSED, "made again", "no effect", "resumed", "read", "kept apart"}


def ending(found: str) -> str:
    """An outcome that is one of ``ENDINGS``."""
    assert found in ENDINGS, found
    return found


def one_line(ended: Outcome, verb: str) -> str:
    """The one line of a command that failed as it should."""
    assert ended.code in (1, 2), ended  # 2: of the command line
    # A progress bar rewrites its line.
    lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith((f"espnet-ext {verb}: error: ", "espnet-ext: error: ")), lines
    assert "Traceback" not in ended.stdout
    return lines[0]


def refused_by_name(ended: Outcome, verb: str, path: Path, *others: str) -> None:
    """Assert that the one line names the file, what it is read for, or what is to be made again."""
    line = one_line(ended, verb)
    assert any(name in line for name in (path.name, path.stem, *others)), line
