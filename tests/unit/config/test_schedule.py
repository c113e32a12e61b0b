"""A schedule in steps is compared with the steps that the data make."""

import json

import pytest

from espnet_ext.config.schedule import schedule_warnings

ESPNET = {
    "scheduler": "piecewiselinearwarmuplr",
    "scheduler_conf": {"warmup_steps_list": [0, 100, 330], "warmup_lr_list": [0.0, 1e-4, 0.0]},
    "batch_type": "sorted",
    "batch_size": 16,
    "max_epoch": 1,
}


@pytest.mark.parametrize(
    ("over", "utterances", "fitting"),
    [
        ({}, 5249, None),
        ({}, 2160, "[0, 41, 135]"),
        ({"max_epoch": 2}, 5249, "[0, 199, 656]"),
        ({"batch_size": 8, "accum_grad": 2}, 5249, None),
        ({"batch_size": 8}, 5249, "[0, 199, 656]"),
        ({"num_iters_per_epoch": 33}, 5249, "[0, 10, 33]"),
        ({"batch_type": "numel"}, 2160, None),
        ({"scheduler": "warmuplr"}, 2160, None),
    ],
)
def test_steps_that_do_not_fit_are_written_anew(over, utterances, fitting):
    found = schedule_warnings({**ESPNET, **over}, utterances)
    assert len(found) == (fitting is not None)
    for line in found:
        assert line.endswith(f"write scheduler_conf: {{warmup_steps_list: {fitting}}}")
        assert "scheduled for 330 steps" in line and f"{utterances:,} utterances" in line
        wanted = json.loads(line.partition("warmup_steps_list: ")[2].rstrip("}"))
        fits = {**ESPNET, **over, "scheduler_conf": {"warmup_steps_list": wanted}}
        assert schedule_warnings(fits, utterances) == []
