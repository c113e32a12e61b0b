"""Errors of a user: one line, a non-zero exit code, no stack trace."""

import argparse
import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable

_ADVICE = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some",
    errno.EACCES: "give yourself permission",
    errno.EPERM: "give yourself permission",
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: "move it away or choose another name",
    errno.ENOTDIR: "move it away or choose another name",
    errno.EISDIR: "move it away or choose another name",
}


LONGEST_NAME = 200  # of 255; files that are being written have longer names


class UserError(Exception):
    """An error that the user can correct; its text is one line that says what to do."""

    code = 1  # of the exit


class StoppedError(UserError):
    """A signal stopped the work after it was saved; the same command goes on."""

    code = os.EX_TEMPFAIL  # utils/slurm/train.sh starts it again


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``name`` quoted with the nearest of ``known``, or all of them if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"'{name}'; did you mean '{close[0]}'?"
    return f"'{name}'; known are: {', '.join(known) or 'none'}"


def unknown_option(method: str, name: str, known: Iterable[str]) -> str:
    """The line for an option that a method lacks, by whichever check finds it."""
    return f"unknown option of {method}: {nearest(name, known)}"


def is_file_name(word: str) -> bool:
    """True for a word that may be the name of a file or folder of ours.

    It is not empty, has no blank, no separator of paths and no character that cannot be printed,
    no dot at its beginning, and is not too long.
    """
    if not word or word[0] == "." or len(word.encode()) > LONGEST_NAME:
        return False
    return word.isprintable() and not set(word) & set("/\\ ")


def check_name(name: str, what: str) -> str:
    """Return a name that becomes part of a path; parts may be separated by ``/``.

    Raises:
        UserError: a part is empty, begins with a dot or a dash, or holds a blank, another
            separator or a character that cannot be printed, or is too long for a file.
    """
    for part in str(name).split("/"):
        if not is_file_name(part) or part[0] == "-":
            raise UserError(
                f"{what} {name[:LONGEST_NAME]!r}: a name has no blank, no control character, no "
                f"part that is empty, begins with a dot or a dash or has over {LONGEST_NAME} bytes"
            )
    return name


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, after its type if it is none of ours."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, UserError):
        return said[0]
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers from ``least`` on."""

    def whole_number(word: str) -> int:
        if not (word.isascii() and word.isdecimal()) or int(word) < least:
            raise argparse.ArgumentTypeError(f"needs a whole number from {least} on, not {word!r}")
        return int(word)

    return whole_number


def run_cli(program: str, main: Callable[[], None]) -> int:
    """Run ``main``; turn errors that are no bug of the program into one line and an exit code.

    These are UserError, an OSError that names a file, a full disk, and Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        # Names in it may hold line breaks.
        print(f"{program}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of the output has enough, as head has
        with contextlib.suppress(OSError, ValueError):  # else Python's last flush fails too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"no space left on the disk that holds {error.filename or os.getcwd()}"
        elif error.filename is not None and error.strerror:
            names = [name for name in (error.filename, error.filename2) if name is not None]
            named = " and ".join(" ".join(str(name).splitlines()) for name in names)
            reason = f"{error.strerror}: {named}"
        else:
            raise
        advice = _ADVICE.get(error.errno or 0, "see to it")
        print(
            f"{program}: error: {reason}; {advice} and run the same command again, "
            "finished work is kept",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
