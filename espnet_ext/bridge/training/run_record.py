"""Run record: each call of ``train`` appends what it measured; ``summary`` merges the calls.

A run that is killed and started again consists of several calls, perhaps on several machines, so
nothing that one process measures is assumed to hold for the whole run.
"""

import json
import time
from pathlib import Path
from typing import Any

from espnet_ext.bridge.memory import peak_rss_mb
from espnet_ext.files import read_json, write_json
from espnet_ext.results.environment import environment
from espnet_ext.results.schema import NOT_MEASURED


class Calls:
    """The calls of ``train`` of one run, in calls.json.

    Args:
        path: of calls.json.
        new_run: discard the calls that the file lists.
        facts: what the caller knows of this call: command, threads, device, dtype, ...
    """

    def __init__(self, path: Path, new_run: bool, **facts: Any):
        self.path = path
        self.others = read_json(path) if path.exists() and not new_run else []
        self.current: dict[str, Any] = {"started": time.time(), "epochs": []}
        self.current |= {"peak_rss_mb": NOT_MEASURED, **facts, **environment()}

    def add(self, epoch: int, measured: bool = True, others_mb: float = 0.0) -> None:
        """Record that this call trained ``epoch``, and its peak memory so far.

        Args:
            epoch: its number.
            measured: False if the memory of some processes is unknown.
            others_mb: peak memory of the training's other processes.
        """
        self.current["epochs"].append(epoch)
        peak = round(peak_rss_mb() + others_mb, 1)
        self.current["peak_rss_mb"] = peak if measured else NOT_MEASURED
        self.write()

    def write(self) -> None:
        """Write calls.json, also before an epoch is whole: a later call may go on within it."""
        write_json(self.path, [*self.others, self.current])

    def refresh(self) -> None:
        """Read what another process of this call recorded."""
        listed = read_json(self.path) if self.path.exists() else []
        started = self.current["started"]
        self.current = next((c for c in listed if c["started"] == started), self.current)

    def summary(self, epochs: int) -> dict[str, Any]:
        """Merge all calls that trained the first ``epochs`` epochs.

        Values that differ between calls are listed. A value is "not measured" if it is unknown
        for one of the epochs.
        """
        calls = [*self.others, *([self.current] if self.current["epochs"] or not epochs else [])]
        known = {epoch for call in calls for epoch in call["epochs"]}
        whole = known >= set(range(1, epochs + 1))
        peaks = [call["peak_rss_mb"] for call in calls]
        measured = whole and NOT_MEASURED not in peaks
        found: dict[str, Any] = {"peak_rss_mb": max(peaks) if measured else NOT_MEASURED}
        threads = {call["threads"] for call in calls}
        found["threads"] = threads.pop() if whole and len(threads) == 1 else NOT_MEASURED
        for key in ("command", "device", "dtype", "commit", "versions", "machine"):
            found[key] = merged([call[key] for call in calls])
        if not whole:
            found["commit"] = merged([*(call["commit"] for call in calls), "unknown"])
        return found


def merged(values: list[Any]) -> Any:
    """Return the only value, or a text of all distinct ones; mappings are merged key by key."""
    if not values:
        return NOT_MEASURED
    if all(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: merged([v[key] for v in values if key in v]) for key in keys}
    distinct = list({json.dumps(value): value for value in values}.values())
    return distinct[0] if len(distinct) == 1 else "; ".join(map(str, distinct))
