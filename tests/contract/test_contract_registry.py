"""Every registered method is known to ESPnet and to this suite, and its files load elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.registry import METHODS
from tests.contract.outputs import output, shapes
from tests.contract.trials import trials_of

ROOT = Path(__file__).resolve().parents[2]


def test_encoders_are_in_the_choices(encoder_case, registered):
    """ESPnet builds the same encoder under ``<method>_<encoder>``."""
    case = encoder_case
    from espnet2.tasks import asr, cls

    for task in (asr, cls):
        chosen = task.encoder_choices.get_class(f"{case.method}_{case.target}")
        assert issubclass(chosen, type(case.plain()))
        model = chosen(input_size=20, **case.conf())
        assert shapes(model) == shapes(case.build())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_option_sets(method, tools):
    assert trials_of(method)
    assert method in {case.method for case in tools.cases()}


def test_every_base_encoder_has_a_contract_case(tools):
    from espnet_ext.bridge.registry import BASES

    assert {case.target for case in tools.cases()} >= set(BASES)


_FRESH = """
import sys, torch
torch.set_num_threads(1)
path, conftest = sys.argv[1:]
import importlib.util
spec = importlib.util.spec_from_file_location("contract_cases", conftest)
module = importlib.util.module_from_spec(spec)
sys.modules["contract_cases"] = module
spec.loader.exec_module(module)
saved = torch.load(path, weights_only=True)
x, lengths = saved["input"]
known = {str(c): c for c in module.cases()}
assert set(known) == set(saved["cases"])
for name, (trained, deployed, expected) in saved["cases"].items():
    for model, state in ((known[name].build(), trained), (known[name].plain(), deployed)):
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            error = (model.eval()(x, lengths)[0] - expected).abs().max().item()
        print(name, error)
"""


def test_round_trip_in_a_fresh_process(tools, tmp_path):
    """Save, load elsewhere, same output: all cases at once, for starting torch takes long."""
    x, lengths = tools.batch()
    saved = {}
    for case in tools.cases():
        model = case.model()
        expected = output(model, x, lengths)
        saved[str(case)] = (model.state_dict(), deploy(model).state_dict(), expected)
    torch.save({"input": (x, lengths), "cases": saved}, tmp_path / "saved.pth")
    conftest = Path(__file__).with_name("conftest.py")
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, tmp_path / "saved.pth", conftest],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if line]
    assert len(errors) == 2 * len(saved) > 0
    assert max(errors) < 1e-5
