"""One training as several processes, started and watched by torch's ``elastic_launch``."""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from espnet_ext.config.processes import Processes
from espnet_ext.errors import StoppedError, UserError

_FOR_NODE_0 = timedelta(hours=6)  # its command may run earlier stages first
_PREPARATION = timedelta(days=7)  # longer than node 0 may need before the training
_SECONDS_TO_READ = 30  # for the other nodes, before node 0 ends
_SECONDS_TO_SAVE = 120  # for workers that were asked to stop
_STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


def launch(
    worker: Callable[..., None], arguments: tuple[Any, ...], of: Processes, log: Path
) -> None:
    """Call ``worker(*arguments)`` in every process of this node, and wait for all of them.

    If one ends with an error, the others are stopped.

    Args:
        worker: a function of a module, decorated with torch's ``record``.
        arguments: what pickle can hold.
        of: the processes.
        log: what an error names.

    Raises:
        UserError: a worker raised one, or was ended by a signal; it names rank, host and signal.
    """
    try:
        with _scratch() as scratch, _standard_error_to(log):
            elastic_launch(_config(of, scratch), worker)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _failure(rank, failure, log) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        name = signal.Signals(error.sigval).name
        raise StoppedError(
            f"stopped by {name}; run the same command to go on from the last saved state"
        ) from None


def _config(of: Processes, scratch: str) -> LaunchConfig:
    """Of torch's launcher; errors of workers pass through files in ``scratch``."""
    several = of.nodes > 1
    return LaunchConfig(
        min_nodes=of.nodes,
        max_nodes=of.nodes,
        nproc_per_node=of.per_node,
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
        run_id=f"espnet-ext-{of.port if several else os.getpid()}",
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=f"{of.master}:{of.port + 1}" if several else "localhost:0",
        rdzv_configs={"rank": of.node} if several else {},
        local_addr=None if several else "localhost",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle=",".join(_STOPS),
        shutdown_timeout=_SECONDS_TO_SAVE,
    )


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder for what torch writes and leaves among the temporary files of this process."""
    with tempfile.TemporaryDirectory(prefix="espnet_ext_launch_") as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def _standard_error_to(log: Path) -> Iterator[None]:
    """Send what torch and the processes that it starts write there to a log."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def stopped(name: str) -> StoppedError:
    """The error of a training that a signal ended after it was saved."""
    return StoppedError(f"stopped by {name}; the state is saved, run the same command to go on")


def _failure(rank: int, failure: ProcessFailure, log: Path) -> UserError:
    """The error that reports the first failure to the user."""
    where = f"process {rank} on {socket.gethostname().split('.')[0]}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "; was the memory full?" if name == "SIGKILL" else ""
        return UserError(
            f"{where} was ended by {name}{hint} (see {log}); run the same command to go on"
        )
    said = failure.message
    if isinstance(said, dict):
        said = said.get("message", "")
    line = str(said).strip().splitlines()[0] if str(said).strip() else ""
    for kind in (StoppedError, UserError):
        if line.startswith(f"{kind.__name__}: "):
            return kind(line.partition(": ")[2])
    return UserError(f"{where} ended with code {failure.exitcode}: {line[:200]}; see {log}")


class Nodes:
    """Messages between the launchers of a training's nodes; node 0 sends, the others wait.

    Node 0 prepares a training alone: others would collect statistics and write records again.

    Args:
        of: the processes, of several nodes.

    Raises:
        UserError: node 0 cannot be reached.
    """

    def __init__(self, of: Processes):
        self.others = of.nodes - 1
        try:
            self.store = TCPStore(
                of.master,
                of.port,
                is_master=of.node == 0,
                timeout=_FOR_NODE_0,
                wait_for_workers=False,
            )
        except (OSError, RuntimeError):
            raise UserError(f"no node 0 at {of.master}:{of.port}; does its command run?") from None

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Send the others an empty job, unless they have theirs."""
        if not self.store.check(["job"]):
            self.send("job", None if kind else {})
        deadline = time.monotonic() + _SECONDS_TO_READ
        while time.monotonic() < deadline:
            if self.store.add("read", 0) >= self.others:
                break
            time.sleep(0.1)

    def send(self, key: str, value: Any) -> None:
        """Give the other nodes a value that JSON holds."""
        self.store.set(key, json.dumps(value))

    def receive(self, key: str) -> Any:
        """Wait for a value of node 0.

        Raises:
            UserError: node 0 stopped before the training, or ended.
        """
        try:
            self.store.set_timeout(_PREPARATION)
            value = json.loads(self.store.get(key))
            self.store.add("read", 1)
        except (RuntimeError, torch.distributed.DistError):
            raise UserError("node 0 ended; see what it printed") from None
        if value is None:
            raise UserError("node 0 stopped before the training; see what it printed")
        return value
