"""Products with integers as graphs, of every shape of scale, against products with the numbers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from espnet_ext.export.runtime.run_onnx import has_vnni
from espnet_ext.export.traced.rounded import RoundedLinear, RoundedLSTM
from espnet_ext.export.traced.tracing import trace
from espnet_ext.formats.bits import Quantised
from espnet_ext.methods.quantise import grouped_integers, integers

ROWS, INPUTS = 40, 48


def quantised(weight: torch.Tensor, bits: int, group: int | str) -> Quantised:
    """A weight with a scale for ``group`` inputs, each output (channel), or all (tensor)."""
    if isinstance(group, int):
        return Quantised(*grouped_integers(weight, bits, group), bits)
    return Quantised(*integers(weight, bits, group), bits)


def in_a_session(module: nn.Module, given: tuple, tmp_path) -> tuple[list[np.ndarray], list[str]]:
    """What the graph of a module gives, and its operators."""
    path = tmp_path / "graph.onnx"
    names = [f"in{place}" for place in range(len(given))]
    with torch.no_grad():
        count = len(module(*given)) if isinstance(module(*given), tuple) else 1
    outs = {f"out{place}": {} for place in range(count)}
    trace(module.eval(), given, path, {name: {} for name in names}, outs)
    options = onnxruntime.SessionOptions()
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    found = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
    return found, [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("products", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("group", ["tensor", "channel", 16, 24])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_products_are_those_of_the_numbers(bits, group, many, products, tmp_path):
    torch.manual_seed(bits)
    layer = nn.Linear(INPUTS, ROWS)
    weight = quantised(layer.weight, bits, group)
    x = torch.randn(1, 6, INPUTS)
    wanted = x @ weight.dequantised().T + layer.bias
    made = RoundedLinear(layer, weight, products, many)
    (found,), kinds = in_a_session(made, (x,), tmp_path)
    error = np.abs(found - wanted.detach().numpy()).max() / wanted.abs().max().item()
    exact = not {"DynamicQuantizeMatMul", "MatMulNBits"} & set(kinds) or products == "float32"
    assert error < (1e-5 if exact else 0.02)  # activations are rounded to 8 bits
    assert "DynamicQuantizeMatMul" not in kinds or products != "float32"
    assert "DynamicQuantizeMatMul" in kinds or products == "float32" or not many or bits == 8


@pytest.mark.parametrize("products", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("names", [("weight_ih_l0", "weight_hh_l0"), ("weight_hh_l0",)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_of_an_lstm_is_torchs(bias, names, products, tmp_path):
    torch.manual_seed(3)
    layer = nn.LSTM(24, 32, batch_first=True, bias=bias)
    weights = {name: quantised(getattr(layer, name), 8, "channel") for name in names}
    for name, weight in weights.items():
        getattr(layer, name).data.copy_(weight.dequantised())
    x, *states = torch.randn(1, 1, 24), torch.randn(1, 1, 32), torch.randn(1, 1, 32)
    wanted, (hidden, cell) = layer(x, tuple(states))

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = RoundedLSTM(layer, weights, products)

        def forward(self, x, hidden, cell):
            y, (hidden, cell) = self.layer(x, (hidden, cell))
            return y, hidden, cell

    found, kinds = in_a_session(Step(), (x, *states), tmp_path)
    assert "LSTM" not in kinds
    tolerance = 1e-5 if products == "float32" else 0.03
    for one, other in zip(found, (wanted, hidden, cell), strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), atol=tolerance)
