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
    found = _status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if found is None else found


def rss_mb() -> float:
    """The resident set of this process now, in MB; where there is no /proc, the largest so far."""
    found = _status_mb("VmRSS")
    return peak_rss_mb() if found is None else found


def _status_mb(name: str) -> float | None:
    """A counter of this process's memory in MB, by the system; None where it has none."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return None


@contextlib.contextmanager
def peak_of_children(watch: bool) -> Iterator[Callable[[], float]]:
    """Inside the block, what it gives returns the largest memory of child processes so far, in MB.

    Children that live already are left out, and so is what they share with this process or with
    one another: the memory of this process includes it. Memory is read each second; ``watch``:
    False if there are none, which costs nothing.
    """
    if not watch:
        yield lambda: 0.0
        return
    peak, over, earlier = [0.0], threading.Event(), _children()

    def look() -> None:
        while not over.wait(_SECONDS):
            peak[0] = max(peak[0], _memory_mb(_children() - earlier))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        watcher.join()


def _children() -> set[str]:
    """The processes that this one has started and that live now."""
    children: set[str] = set()
    for listed in _TASKS.glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            children.update(listed.read_text(encoding="ascii").split())
    return children


def _memory_mb(processes: set[str]) -> float:
    """The memory of ``processes`` now, in MB, without shared pages."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):  # a process that has just ended
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
            total += sum(map(int, re.findall(r"^Private_\w+: +(\d+)", rollup, re.MULTILINE)))
    return total / 1024
