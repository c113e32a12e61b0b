"""A map over processes that ends with its parent, at Ctrl-C, and at the first error."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from espnet_ext.errors import UserError


def map_processes[T, R](
    function: Callable[..., R],
    tasks: Sequence[T],
    jobs: int,
    chunk: int = 16,
    shared: Any = None,
) -> Iterator[R]:
    """Yield ``function(task)`` in the order of ``tasks``, computed by ``jobs`` processes.

    With ``shared``, an object that is too large to be sent with each task, it is
    ``function(shared, task)``: the processes are forked, so they hold it. With one job, or few
    tasks, everything runs in this process.

    Raises:
        UserError: a process was killed from outside; also whatever ``function`` raises, after
            the tasks that wait have been dropped.
    """
    if jobs <= 1 or len(tasks) <= chunk:
        yield from map(function if shared is None else partial(function, shared), tasks)
        return
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(os.getpid(), shared),  # a fork inherits them
    )
    if shared is not None:
        function = partial(_with_shared, function)
    try:
        results: Iterable[R] = pool.map(function, tasks, chunksize=chunk)
        yield from results
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; "
            "run the same command again, with --nj 1 if it has that; finished work is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_inherited: list[Any] = []  # in a worker: the shared object


def _with_shared(function: Callable[..., Any], task: Any) -> Any:
    return function(_inherited[0], task)


def _start_worker(parent: int, shared: Any) -> None:
    _inherited[:] = [shared]
    # Ctrl-C reaches the parent too, and that one says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> Any:
    """Leave when the parent was killed: it can no longer stop its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
