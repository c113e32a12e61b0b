"""How a mistake of the user is told: one line, a non-zero exit, no stack trace."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake that the user can mend; its text is one line that says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``name`` quoted with the nearest of ``known``, or all of them if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"'{name}'; did you mean '{close[0]}'?"
    return f"'{name}'; known are: {', '.join(known) or 'none'}"


def run_cli(program: str, main: Callable[[], None]) -> int:
    """Run ``main`` and turn a UserError, a full disk or Ctrl-C into one line and an exit code."""
    try:
        main()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or os.getcwd()
        print(
            f"{program}: error: no space left on the disk that holds {where}; "
            "free some and run the same command again, finished work is kept",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
