"""Times of a stream, summed up without being kept."""

import numpy as np
import pytest


def test_times_are_summed_up_as_numpy_does():
    from espnet_ext.bridge.streaming.latency import BIN_WIDTH, Durations

    random = np.random.default_rng(0)
    for values in (
        random.lognormal(-4, 1, 5000),
        random.uniform(0.01, 0.011, 1000),
        np.array([0.002, 3.0]),
        np.array([0.5]),
        np.array([0.0, 0.0, 1e-3, 2e-3, 1e6]),
    ):
        found = Durations()
        for value in values.tolist():
            found.add(value)
        assert (found.count, found.least, found.greatest) == (
            len(values),
            values.min(),
            values.max(),
        )
        assert found.total == pytest.approx(values.sum(), rel=1e-12)
        for q in (0, 5, 50, 95, 100):
            assert found.percentile(q) == pytest.approx(np.percentile(values, q), rel=BIN_WIDTH)
    assert Durations().percentile(50) is None
