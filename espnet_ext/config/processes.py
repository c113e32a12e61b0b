"""Over how many processes and nodes one training is spread, and where node 0 is."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from espnet_ext.errors import UserError

_PORT = 29500  # torchrun's default


@dataclass(frozen=True)
class Processes:
    """The processes of one training; each has one GPU, or threads of a CPU.

    Attributes:
        per_node: processes of a node.
        nodes: nodes, each of which runs the same command.
        node: number of this node, from 0.
        master: host of node 0; "" where there is one node.
        port: first of two free ports there: for our messages, and for torch's.
    """

    per_node: int = 1
    nodes: int = 1
    node: int = 0
    master: str = ""
    port: int = _PORT

    @property
    def world(self) -> int:
        """Processes of all nodes."""
        return self.per_node * self.nodes

    @property
    def alone(self) -> bool:
        """True for one process, which then is the caller's."""
        return self.world == 1


def backend_of(gpu: bool) -> str:
    """The library by which the processes exchange gradients."""
    return "nccl" if gpu else "gloo"


def find_processes(
    per_node: int,
    nodes: int,
    master: str | None = None,
    variables: Mapping[str, str] = os.environ,
) -> Processes:
    """Fill in what Slurm or torchrun say of this node.

    Args:
        per_node: processes of a node.
        nodes: nodes.
        master: HOST or HOST:PORT of node 0; default: ``MASTER_ADDR`` and ``MASTER_PORT``, else the
            first host of Slurm's list.
        variables: of the environment: ``SLURM_NODEID``, ``GROUP_RANK`` or ``NODE_RANK`` is the
            number of this node.

    Raises:
        UserError: several nodes, and nothing says which one this is or where node 0 is.
    """
    if nodes == 1:
        return Processes(per_node)
    known = [
        variables[key] for key in ("SLURM_NODEID", "GROUP_RANK", "NODE_RANK") if key in variables
    ]
    if not known:
        raise UserError(
            f"--num_nodes {nodes}: which node is this? start it with srun --ntasks-per-node 1, "
            "or set NODE_RANK"
        )
    node = int(known[0]) if known[0].isdecimal() else -1
    if not 0 <= node < nodes:
        raise UserError(f"--num_nodes {nodes}: this node's number is {known[0]}; they go from 0 on")
    host, _, port = (master or variables.get("MASTER_ADDR") or _first_host(variables)).partition(
        ":"
    )
    if not host:
        raise UserError(f"--num_nodes {nodes}: where is node 0? give --master HOST[:PORT]")
    port = port or variables.get("MASTER_PORT") or str(_port_of_job(variables))
    if not port.isdecimal() or not 0 < int(port) < 2**16 - 1:
        raise UserError(f"--master {host}:{port}: a port is a number below 65535")
    return Processes(per_node, nodes, node, host, int(port))


def _first_host(variables: Mapping[str, str]) -> str:
    """The first host of Slurm's list, such as ``a[01-03,7],b``; "" without one."""
    hosts = variables.get("SLURM_JOB_NODELIST", "")
    if not re.search(r"[\[,]", hosts):
        return hosts
    words = ["scontrol", "show", "hostnames", hosts]
    try:
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return shown.split()[0] if shown.split() else ""


def _port_of_job(variables: Mapping[str, str]) -> int:
    """A port that two jobs on one host seldom share."""
    job = variables.get("SLURM_JOB_ID", "")
    return _PORT + 2 * (int(job) % 5000) if job.isdecimal() else _PORT
