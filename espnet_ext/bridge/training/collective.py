"""The processes of one training talk to each other; a training in one process has nobody to ask."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist


def world() -> int:
    """Processes of this training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def largest(numbers: Sequence[float]) -> list[float]:
    """The largest of each number over all processes."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def total(number: float) -> float:
    """The sum of a number over all processes."""
    return _reduced([number], dist.ReduceOp.SUM)[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank; complete in the first."""
    if world() == 1:
        return [value]
    found = [None] * world() if rank() == 0 else None
    dist.gather_object(value, found)
    return found or []


def _reduced(numbers: Sequence[float], operation: Any) -> list[float]:
    if world() == 1:
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(found, operation)
    return found.tolist()
