"""Schedules of the learning rate that are written in steps, which depend on the data."""

from collections.abc import Mapping
from typing import Any

_NEAR = 0.1  # a share of the steps; the number of batches is that of ESPnet, nearly
_IN_UTTERANCES = ("sorted", "unsorted")  # batch types whose batch_size counts utterances
EPOCHS = 40  # ESPnet's default of max_epoch
_BATCH = 20  # and of batch_size


def schedule_warnings(espnet: Mapping[str, Any], utterances: int) -> list[str]:
    """Compare the last step of ``piecewiselinearwarmuplr`` with the steps of a training.

    Past its last step ESPnet's rate is no longer linear: it jumps up again.

    Args:
        espnet: ESPnet's options.
        utterances: of the training set.

    Returns:
        A line that says what to write, if both differ by over a tenth; else nothing, also for
        batches that are not counted in utterances.
    """
    listed = (espnet.get("scheduler_conf") or {}).get("warmup_steps_list") or [0]
    kind, last = espnet.get("batch_type", "folded"), listed[-1]
    if espnet.get("scheduler") != "piecewiselinearwarmuplr" or kind not in _IN_UTTERANCES:
        return []
    size, epochs = espnet.get("batch_size") or _BATCH, espnet.get("max_epoch") or EPOCHS
    batches = espnet.get("num_iters_per_epoch") or max(1, utterances // size)
    steps = batches // (espnet.get("accum_grad") or 1) * epochs
    if not last or not steps or abs(last - steps) <= _NEAR * steps:
        return []
    fitting = [round(step * steps / last) for step in listed]
    return [
        f"the learning rate is scheduled for {last:,} steps, and {utterances:,} utterances make "
        f"{steps:,}: write scheduler_conf: {{warmup_steps_list: {fitting}}}"
    ]
