"""A process of a training: it logs, computes and records."""

import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from espnet_ext.bridge.memory import peak_of_children, peak_rss_mb
from espnet_ext.bridge.training.collective import rank, total
from espnet_ext.bridge.training.launch import Nodes, launch
from espnet_ext.bridge.training.run_record import Calls
from espnet_ext.bridge.training.trainer import Settings, run_task
from espnet_ext.config.processes import Processes, backend_of


@dataclass(frozen=True)
class Job:
    """One training, as its processes get it.

    Attributes:
        command: ESPnet's options.
        log: of ESPnet.
        task: name of the task, of ``registry.TASKS``.
        cpu_dtype: type of forward passes on a CPU; "": that of the weights.
        threads: CPU threads of a process.
        minutes: between checkpoints within an epoch.
        workers: processes that read data for each of these.
        gpu: a GPU for each process.
        sync_batchnorm: see ``trainer.Settings``.
        calls: where the first process records epochs.
    """

    command: tuple[str, ...]
    log: Path
    task: str
    cpu_dtype: str
    threads: int
    minutes: float
    workers: int
    gpu: bool
    sync_batchnorm: bool = True
    calls: Calls | None = None

    def to_node(self) -> dict[str, Any]:
        """The job as JSON holds it, for the other nodes."""
        return {**vars(self), "log": str(self.log), "calls": None}

    @classmethod
    def from_node(cls, job: dict[str, Any]) -> "Job":
        """The job that node 0 sent."""
        return cls(**{**job, "log": Path(job["log"]), "command": tuple(job["command"])})

    def run(self) -> None:
        """Train in this process.

        Raises:
            UserError: of ``run_task``.
        """
        dtype = getattr(torch, self.cpu_dtype) if self.cpu_dtype else None
        saved = self.calls.write if self.calls is not None else None
        with peak_of_children(self.workers > 0) as workers_mb:

            def epoch_is_over(epoch: int) -> None:
                self._record(epoch, workers_mb())

            settings = Settings(dtype, self.minutes, epoch_is_over, saved, self.sync_batchnorm)
            run_task(self.command, self.log, self.task, settings)

    def _record(self, epoch: int, workers_mb: float) -> None:
        """Record an epoch, with the peak memory of all processes."""
        process_mb = peak_rss_mb()
        others = total(process_mb + workers_mb) - process_mb
        # An epoch may end before the workers are looked at.
        unseen = total(float(self.workers > 0 and workers_mb == 0))
        if self.calls is not None and rank() == 0:
            self.calls.add(epoch, measured=unseen == 0, others_mb=others)


def train_in_processes(job: Job, processes: Processes, nodes: Nodes | None = None) -> None:
    """Train in this process, or in several that it starts and watches.

    Raises:
        UserError: of ``run_task`` or ``launch``.
    """
    if processes.alone:
        job.run()
        return
    options = ["--ngpu", str(int(job.gpu)), "--multiprocessing_distributed", "false"]
    job = replace(job, command=(*job.command, *options, "--dist_backend", backend_of(job.gpu)))
    if nodes is not None:
        nodes.send("job", job.to_node())
    launch(train_as_one_of_several, (job,), processes, job.log)
    if job.calls is not None:
        job.calls.refresh()


def train_for_node_0(processes: Processes) -> None:
    """On another node than the first: wait for its job, and take part in it.

    Raises:
        UserError: node 0 is not there, or stopped; an error of ``launch``.
    """
    print(f"train: node {processes.node} waits for node 0 at {processes.master}:{processes.port}")
    nodes = Nodes(processes)
    given = nodes.receive("job")
    if given:
        job = Job.from_node(given)
        launch(train_as_one_of_several, (job,), processes, job.log)
    print(f"train: node {processes.node} has done its part")


@record
def train_as_one_of_several(job: Job) -> None:
    """Train as the process that torch's variables say (RANK, WORLD_SIZE, ...)."""
    if not job.gpu:
        torch.set_num_threads(job.threads)
    log_to(job.log, int(os.environ["RANK"]))
    job.run()


def log_to(path: Path, number: int = 0) -> None:
    """Send ESPnet's log to a file whole, and its progress to the terminal; of others, errors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    root.handlers.clear()
    whole = logging.FileHandler(path)
    name = os.uname().nodename.split(".")[0] + (f":{number}" if number else "")
    form = f"[{name}] %(asctime)s (%(module)s:%(lineno)d) "
    whole.setFormatter(logging.Formatter(form + "%(levelname)s: %(message)s"))
    root.addHandler(whole)
    if number == 0:
        progress = logging.StreamHandler(sys.stdout)
        progress.setFormatter(logging.Formatter("%(asctime)s %(message).110s", "%H:%M:%S"))
        progress.addFilter(
            lambda r: r.module in ("trainer", "reporter") and "epoch" in r.getMessage()
        )
        root.addHandler(progress)
    root.setLevel(logging.ERROR if number else logging.INFO)
    # Warnings are for the log; a full disk is reported once, by the writer of a result.
    logging.captureWarnings(True)
    logging.raiseExceptions = False
