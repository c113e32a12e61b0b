"""Curves of a training, read from its log."""

from espnet_ext.results.plots.training import read_curves
from tests.fixtures.a_run import LOG


def test_curves_from_the_training_log(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    curves = read_curves([log])
    assert curves["loss"] == {"train": {1: 5.21, 2: 4.0}, "valid": {1: 6.0, 2: 3.5}}
    assert curves["acc"] == {"train": {1: 0.101}} and curves["cer"] == {"valid": {1: 0.9}}
    assert "time" not in curves and "train_time" not in curves
