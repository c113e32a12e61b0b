"""Sizes of inputs, compared with those that are computed by hand."""

import pytest
import torch

from espnet_ext.bridge.training.input_sizes import measure_inputs
from espnet_ext.methods.chains import attach
from espnet_ext.methods.nested_layers import NestedWeight, Selection
from espnet_ext.methods.nested_options import Member, NestedOptions


class Model(torch.nn.Module):
    """A convolution in two groups, a linear layer, and one that is not rounded per input."""

    def __init__(self, bits=32, per="input"):
        super().__init__()
        options = NestedOptions(bits=[32, 6], per=per, scale="deviation")
        self.selection = Selection(Member((), None, bits))
        self.conv = torch.nn.Conv1d(4, 6, 3, groups=2)
        self.out = torch.nn.Linear(6, 2)
        self.plain = torch.nn.Linear(2, 2)
        for layer in (self.conv, self.out):
            attach(layer, "weight", NestedWeight(layer.weight, self.selection, options, None))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        """(B, 4, T) to (B, T - 2, 2)."""
        return self.plain(self.out(self.drop(self.conv(x)).transpose(1, 2)))


def batches():
    torch.manual_seed(3)
    scale = torch.tensor([0.01, 1.0, 2.0, 0.0]).view(1, -1, 1)
    return [(["a"], {"x": torch.randn(2, 4, 9) * scale}) for _ in range(2)]


def test_sizes_are_root_mean_squares_over_their_geometric_mean():
    model = Model().train()
    random = torch.random.get_rng_state()
    found = batches()
    torch.random.set_rng_state(random)
    measure_inputs(model, lambda: found)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training
    x = torch.cat([batch["x"] for _, batch in found])
    # Channels 0 and 2 are the first of their groups.
    squares = x.square().mean((0, 2)).view(2, 2).mean(0)
    with torch.no_grad():
        inner = model.conv(x).square().mean((0, 2))
    for layer, mean in ((model.conv, squares), (model.out, inner)):
        size = mean.sqrt()
        wanted = (size / size.log().mean().exp()).clamp(0.25, 4.0)
        torch.testing.assert_close(layer.parametrizations["weight"][0].inputs, wanted)


def test_an_input_that_is_always_zero_counts_a_little():
    model = Model()
    silent = [(["a"], {"x": torch.zeros(1, 4, 5)}), (["b"], {"x": torch.eye(4)[:2].view(1, 4, 2)})]
    measure_inputs(Model(per="tensor"), lambda: pytest.fail("nothing to measure"))
    measure_inputs(model, lambda: [silent[0]])
    sizes = model.conv.parametrizations["weight"][0].inputs
    assert (sizes > 0).all() and torch.isfinite(sizes).all()


def test_only_inputs_at_32_bits_count():
    model = Model(bits=6)
    measure_inputs(model, batches)
    for layer in (model.conv, model.out):
        assert (layer.parametrizations["weight"][0].inputs == 1).all()
