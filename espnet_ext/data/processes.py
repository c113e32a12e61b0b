"""A map over processes that ends with its parent, at Ctrl-C, and at the first error."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from espnet_ext.errors import UserError


def map_processes[T, R](
    function: Callable[[T], R], tasks: Sequence[T], jobs: int, chunk: int = 16
) -> Iterator[R]:
    """Yield ``function(task)`` in the order of ``tasks``, computed by ``jobs`` processes.

    The processes are forked, so they hold what this one does. With one job, or few tasks,
    everything runs in this process.

    Raises:
        UserError: a process was killed from outside; also whatever ``function`` raises, after
            the tasks that wait have been dropped.
    """
    if jobs <= 1 or len(tasks) <= chunk:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    try:
        results: Iterable[R] = pool.map(function, tasks, chunksize=chunk)
        yield from results
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; "
            "run the same command again with --nj 1, finished work is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    # Ctrl-C reaches the parent too, and that one says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> Any:
    """Leave when the parent was killed: it cannot tell its workers any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
