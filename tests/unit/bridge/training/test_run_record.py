"""The run record of a training that several calls made; unknown values are not measured."""

from types import SimpleNamespace

import pytest

from espnet_ext.bridge.training import run_record
from espnet_ext.bridge.training.run_record import Calls
from espnet_ext.files import read_json
from espnet_ext.results.schema import NOT_MEASURED

TOLD = {"command": "train a", "threads": 2, "device": "cpu", "dtype": "float32"}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Return a call of train at some commit, with a peak of some MB, for some epochs."""

    def make(epochs=(), peak=100.0, commit="c1", new_run=False, measured=True, **said) -> Calls:
        monkeypatch.setattr(run_record, "peak_rss_mb", lambda: peak)
        known = {"commit": commit, "versions": {"torch": "2"}, "machine": {"cores": 2}}
        monkeypatch.setattr(run_record, "environment", lambda: known)
        made = Calls(tmp_path / "calls.json", new_run, **(TOLD | said))
        for epoch in epochs:
            made.add(epoch, measured)
        return made

    return make


def test_a_run_killed_and_resumed_has_the_largest_peak_and_all_commits(call):
    call([1, 2], peak=900.0, command="train a -- --max_epoch 3")  # killed in its third epoch
    call([3], peak=400.0, commit="c2", threads=4)
    summary = call([], peak=50.0, commit="c3").summary(3)  # found nothing left to train
    assert summary["peak_rss_mb"] == 900.0
    assert summary["commit"] == "c1; c2"
    assert summary["threads"] == NOT_MEASURED
    assert summary["command"] == "train a -- --max_epoch 3; train a"
    assert (summary["device"], summary["dtype"]) == ("cpu", "float32")
    assert (summary["versions"], summary["machine"]) == ({"torch": "2"}, {"cores": 2})


def test_what_one_call_measured_is_told_as_it_is(call):
    summary = call([1, 2], peak=123.4).summary(2)
    assert (summary["peak_rss_mb"], summary["threads"], summary["commit"]) == (123.4, 2, "c1")


def test_epochs_of_which_nothing_is_known(call):
    summary = call([2], peak=100.0).summary(2)
    assert summary["peak_rss_mb"] == summary["threads"] == NOT_MEASURED
    assert summary["commit"] == "c1; unknown"
    nothing = call([], new_run=True).summary(2)
    assert nothing["commit"] == "unknown"
    for key in ("peak_rss_mb", "threads", "versions", "machine", "command", "dtype"):
        assert nothing[key] == NOT_MEASURED


def test_memory_of_other_processes_is_not_guessed(call):
    assert call([1, 2], measured=False).summary(2)["peak_rss_mb"] == NOT_MEASURED


def test_a_new_run_forgets_the_calls_of_an_old_one_once_it_has_an_epoch(call, tmp_path):
    call([1], commit="old")
    new = call([1], commit="new", new_run=True)
    assert new.summary(1)["commit"] == "new"
    assert [entry["commit"] for entry in read_json(tmp_path / "calls.json")] == ["new"]


@pytest.mark.parametrize(
    ("cpu_dtype", "options", "said"),
    [
        (None, {}, "float32"),
        ("bfloat16", {}, "bfloat16 autocast, float32 weights"),
        (None, {"use_amp": True}, "float32"),  # ESPnet's is for GPUs
        (None, {"use_amp": True, "ngpu": 1}, "float16 autocast, float32 weights"),
        (None, {"train_dtype": "float64"}, "float64"),
    ],
)
def test_the_type_is_that_of_the_forward_pass(cpu_dtype, options, said, monkeypatch):
    import torch

    from espnet_ext.bridge.training import trainer

    chosen = None if cpu_dtype is None else getattr(torch, cpu_dtype)
    monkeypatch.setattr(trainer, "autocast_args", {})
    given = {"ngpu": 0, "use_amp": False, "train_dtype": "float32"} | options
    assert trainer.dtype_of(SimpleNamespace(**given), chosen) == said


@pytest.mark.parametrize(("n", "epochs"), [(3, [2, 4, 1]), (1, [2])])
def test_the_epochs_of_the_average_are_those_that_espnet_took(n, epochs, tmp_path):
    import torch

    from espnet_ext.bridge.training.resume import averaged_epochs

    losses = {1: 3.0, 2: 1.0, 3: 9.0, 4: 2.0}
    stats = {epoch: {"valid": {"loss": loss}} for epoch, loss in losses.items()}
    state = {"model": {}, "reporter": {"epoch": 4, "stats": stats}}
    torch.save(state, tmp_path / "checkpoint.pth")
    options = SimpleNamespace(max_epoch=4, best_model_criterion=[("valid", "loss", "min")])
    found = averaged_epochs(tmp_path, options, tmp_path / f"valid.loss.ave_{n}best.pth")
    assert found == {"file": f"valid.loss.ave_{n}best.pth", "epochs": epochs}


def test_peak_memory_is_that_of_this_process():
    import subprocess
    import sys

    code = (
        "from espnet_ext.bridge.memory import peak_rss_mb\n"
        "before = peak_rss_mb(); block = bytearray(200 << 20); print(before, peak_rss_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 100  # this process, which started that one, is larger
    assert 190 < after - before < 260
