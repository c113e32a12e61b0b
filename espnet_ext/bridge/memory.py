"""Peak memory of this process, and of those that it starts."""

import contextlib
import re
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")
_TASKS = Path("/proc/self/task")
_SECONDS = 1.0  # between two looks at other processes


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MB (2^20 bytes).

    ``ru_maxrss`` would count the parent of a process that it started, so it serves only where
    there is no /proc.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def peak_of_children(watch: bool) -> Iterator[Callable[[], float]]:
    """Inside the block, what it gives returns the largest memory of child processes so far, in MB.

    What they share with this process, or with one another, is left out: this process's own memory
    has it. It is looked at each second; ``watch``: False if there are none, which costs nothing.
    """
    if not watch:
        yield lambda: 0.0
        return
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS):
            peak[0] = max(peak[0], _children_mb())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        watcher.join()


def _children_mb() -> float:
    """Memory of the child processes that live now, in MB, without shared pages."""
    children: list[str] = []
    for listed in _TASKS.glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            children += listed.read_text(encoding="ascii").split()
    total = 0
    for child in children:
        with contextlib.suppress(OSError):  # a process that has just ended
            rollup = Path(f"/proc/{child}/smaps_rollup").read_text(encoding="ascii")
            total += sum(map(int, re.findall(r"^Private_\w+: +(\d+)", rollup, re.MULTILINE)))
    return total / 1024
