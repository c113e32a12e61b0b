"""What is known of a training: measured by each call of ``train``, put together at its end."""

import json
import resource
import time
from pathlib import Path
from typing import Any

from espnet_ext.files import read_json, write_json
from espnet_ext.results.environment import environment
from espnet_ext.results.schema import NOT_MEASURED


class Calls:
    """The calls of ``train`` that made a run, in calls.json; each is rewritten every epoch.

    A run that is killed and started again is made by several calls, perhaps on several
    machines: what one process knows of itself would not be true of all.
    """

    def __init__(self, path: Path, new_run: bool, **told: Any):
        """Prepare the entry of this call.

        Args:
            path: calls.json.
            new_run: forget what is there.
            told: what the caller knows of itself: command, threads, device, dtype, ...
        """
        self.path = path
        self.others = read_json(path) if path.exists() and not new_run else []
        self.own: dict[str, Any] = {"started": time.time(), "epochs": []}
        self.own |= {"peak_rss_mb": NOT_MEASURED, **told, **environment()}

    def add(self, epoch: int, measured: bool = True) -> None:
        """Note that this call trained ``epoch``, and its largest resident set so far.

        ``measured`` is False if other processes than this one did the work.
        """
        self.own["epochs"].append(epoch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.own["peak_rss_mb"] = round(peak, 1) if measured else NOT_MEASURED
        write_json(self.path, [*self.others, self.own])

    def summary(self, epochs: int) -> dict[str, Any]:
        """What holds for all calls that trained the first ``epochs`` epochs.

        What differs between calls is listed; what is not known of an epoch is not measured.
        """
        calls = [*self.others, *([self.own] if self.own["epochs"] else [])]
        known = {epoch for call in calls for epoch in call["epochs"]}
        whole = known >= set(range(1, epochs + 1))
        peaks = [call["peak_rss_mb"] for call in calls]
        measured = whole and NOT_MEASURED not in peaks
        found: dict[str, Any] = {"peak_rss_mb": max(peaks) if measured else NOT_MEASURED}
        threads = {call["threads"] for call in calls}
        found["threads"] = threads.pop() if whole and len(threads) == 1 else NOT_MEASURED
        for key in ("command", "device", "dtype", "commit", "versions", "machine"):
            found[key] = together([call[key] for call in calls])
        if not whole:
            found["commit"] = together([*(call["commit"] for call in calls), "unknown"])
        return found


def together(values: list[Any]) -> Any:
    """Return the only value; or, key by key, all different ones in a text."""
    if not values:
        return NOT_MEASURED
    if all(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: together([v[key] for v in values if key in v]) for key in keys}
    distinct = list({json.dumps(value): value for value in values}.values())
    return distinct[0] if len(distinct) == 1 else "; ".join(map(str, distinct))
