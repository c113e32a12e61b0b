"""HRF against independent computations: numpy in float64, the paper's bias rule, the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods import hrf
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.hrf import HRFOptions, apply_hrf, factorize, factorwise_forward
from espnet_ext.methods.registry import METHODS
from espnet_ext.methods.verify import exact_products

RATIOS = st.one_of(st.integers(1, 4), st.floats(1, 4).map(lambda r: round(r, 2)))


def layer_of(kind: str, inputs: int, outputs: int, bias: bool) -> nn.Module:
    if kind == "linear":
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Conv1d(inputs, outputs, 1, bias=bias)


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.eval()


def by_hand(layer: nn.Module) -> tuple[np.ndarray, np.ndarray | None]:
    """The paper's W_n ... W_1 and b_n + W_n b_(n-1) + W_n W_(n-1) b_(n-2) + ..., term by term."""
    state = {k: v.double().numpy() for k, v in layer.state_dict().items()}
    factors = [v for k, v in sorted(state.items()) if "weight.original" in k]
    biases = [v for k, v in sorted(state.items()) if "bias.original" in k]
    folded = None
    if biases:
        folded = np.zeros(len(factors[-1]))
        for k, term in enumerate(biases):
            for factor in factors[k + 1 :]:
                term = factor.dot(term)
            folded = folded + term
    return np.linalg.multi_dot(factors[::-1]), folded


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "conv"]),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    ratio=RATIOS,
    factors=st.sampled_from([2, 3]),
    bias=st.booleans(),
    double=st.booleans(),
)
def test_merged_layer_is_the_product(kind, inputs, outputs, ratio, factors, bias, double):
    torch.manual_seed(inputs * 100 + outputs)
    layer = layer_of(kind, inputs, outputs, bias).to(torch.float64 if double else torch.float32)
    factorize(layer, HRFOptions(ratio=ratio, factors=factors))
    randomised(layer)
    weight, folded = by_hand(layer)
    plain = deploy(layer)
    assert type(plain) is type(layer_of(kind, 1, 1, bias))
    # float32: formed in float64 and rounded once, so within one unit in the last place.
    relative = 1e-12 if double else 2**-23
    scale = 1e-12 * max(1.0, np.abs(weight).max())
    np.testing.assert_allclose(
        plain.weight.detach().double().numpy().reshape(outputs, inputs), weight, relative, scale
    )
    if bias:
        scale = 1e-12 * max(1.0, np.abs(folded).max())
        np.testing.assert_allclose(plain.bias.detach().double().numpy(), folded, relative, scale)
    else:
        assert plain.bias is None


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    ratio=RATIOS,
    factors=st.sampled_from([2, 3]),
    bias=st.booleans(),
)
def test_frames_through_the_factors_agree(inputs, outputs, ratio, factors, bias):
    """Same outputs and same gradients as pushing every frame through all factors."""
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    factorize(layer, HRFOptions(ratio=ratio, factors=factors))
    randomised(layer)
    x = torch.randn(3, 5, inputs, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(3, 5, outputs, dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    y, z = layer(x), factorwise_forward(layer, x)
    torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad((y * direction).sum(), wanted),
        torch.autograd.grad((z * direction).sum(), wanted),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("ratio", [1, 1.5, 2, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 192), (192, 96)])
def test_initialisation_keeps_the_spread(inputs, outputs, ratio, factors):
    """Deviation of the product's entries against that of the replaced layer, many entries."""
    layer = nn.Linear(inputs, outputs)
    before = layer.weight.std().item()
    bias = layer.bias.detach().clone()
    factorize(layer, HRFOptions(ratio=ratio, factors=factors))
    assert layer.weight.std().item() == pytest.approx(before, rel=0.06)
    assert layer.weight.mean().abs().item() < 0.05 * before
    assert torch.equal(layer.bias, bias)


def test_inner_width_is_ratio_times_outputs():
    for factors, shapes in (
        (2, [(15, 7), (10, 15)]),
        (3, [(15, 7), (15, 15), (10, 15)]),
    ):
        layer = nn.Linear(7, 10)
        factorize(layer, HRFOptions(ratio=1.5, factors=factors))
        assert [tuple(f.shape) for f in hrf.hrf_factors(layer.parametrizations["weight"])] == shapes


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_product_is_formed_once_a_forward(kind, monkeypatch):
    """Each access of a parametrized weight computes it again; the layers access it once."""
    calls = []
    forward = hrf.HRFWeight.forward
    monkeypatch.setattr(
        hrf.HRFWeight, "forward", lambda self, *f: calls.append(1) or forward(self, *f)
    )
    layer = layer_of(kind, 6, 5, bias=True)
    factorize(layer, HRFOptions())
    assert not calls  # building computes none
    layer(torch.randn(2, 6, 6))
    assert len(calls) == 1


def test_cost_counts_the_multiplications():
    for inputs, outputs, factors in ((7, 5, 2), (7, 5, 3), (5, 7, 3)):
        options = HRFOptions(ratio=2, factors=factors)
        layer = nn.Linear(inputs, outputs, bias=False)
        factorize(layer, options)
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            _ = layer.weight
        inner = 2 * outputs
        middle = inner * inner * min(inputs, outputs) if factors == 3 else 0
        assert counter.get_total_flops() == 2 * (outputs * inner * inputs + middle)


@pytest.mark.parametrize(
    "options",
    [
        {"factors": 1},
        {"factors": 4},
        {"factors": 2.0},
        {"factors": None},
        {"ratio": 0.5},
        {"ratio": math.nan},
        {"ratio": math.inf},
        {"ratio": "4"},
        {"ratio": True},
        {"sites": []},
        {"sites": None},
        {"sites": 3},
        {"sites": [3]},
        {"sites": ["fnn"]},
        {"site": ["ffn"]},
        {3: 4},
        ["ffn"],
        4,
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError) as caught:
        METHODS["hrf"].parse(options)
    assert "\n" not in str(caught.value)
    assert METHODS["hrf"].parse(None) == HRFOptions()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.w_1, self.linear_q = nn.Linear(4, 4), nn.Linear(4, 4)


def test_one_site_as_a_string_is_that_site():
    model = apply_hrf(Pair(), HRFOptions(sites="ffn"))
    assert HRFOptions(sites="all").sites == ("all",)
    assert hasattr(model.w_1, "parametrizations")
    assert not hasattr(model.linear_q, "parametrizations")


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("sites", [["ffn"], ["all"]])
def test_tie_that_cannot_be_kept_is_refused(part, sites):
    model = Pair()
    setattr(model.w_1, part, getattr(model.linear_q, part))
    before = set(model.state_dict())
    with pytest.raises(UserError, match="w_1 and linear_q"):
        apply_hrf(model, HRFOptions(sites=sites))
    assert set(model.state_dict()) == before  # nothing was changed half-way


def test_missing_site_and_second_method_are_refused():
    with pytest.raises(UserError, match="conv"):
        apply_hrf(Pair(), HRFOptions(sites=["ffn", "conv"]))
    model = apply_hrf(Pair(), HRFOptions())
    with pytest.raises(UserError, match="already"):
        apply_hrf(model, HRFOptions())


def test_other_parametrizations_keep_their_layer():
    """Weight normalisation is torch's and part of a plain model: wav2vec 2.0 is saved with it."""
    depthwise = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 1, groups=4)).eval()
    (kept,) = deploy(nn.Sequential(depthwise).eval())
    assert kept.state_dict().keys() == depthwise.state_dict().keys()
    x = torch.randn(1, 4, 9)
    torch.testing.assert_close(kept(x), depthwise(x))


def test_overflow_of_the_product_is_refused():
    layer = nn.Linear(4, 4)
    factorize(layer, HRFOptions())
    with torch.no_grad():
        for factor in hrf.hrf_factors(layer.parametrizations["weight"]):
            factor.fill_(1e30)
    with pytest.raises(UserError, match="infinite"):
        deploy(layer.eval())


def test_frozen_layer_stays_frozen():
    layer = nn.Linear(4, 4).requires_grad_(False)
    factorize(layer, HRFOptions())
    assert not any(p.requires_grad for p in layer.parameters())
    assert not any(p.requires_grad for p in deploy(layer.eval()).parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_near_float32(dtype):
    """Training in reduced precision: factors stay float32, error as of one rounded product."""
    layer = nn.Linear(64, 64)
    factorize(layer, HRFOptions(ratio=2))
    x = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    reference = layer(x)
    assert (y.float() - reference).abs().max() < 0.02 * reference.abs().max()
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_products_are_exact_where_a_deployed_model_is_verified():
    torch.manual_seed(5)
    layer = nn.Linear(300, 900)
    factorize(layer, HRFOptions(ratio=4))
    randomised(layer)
    weight, bias = by_hand(layer)
    deployed = deploy(layer)

    def off() -> float:
        return max(
            np.abs(layer.weight.detach().double().numpy() - weight).max(),
            np.abs(layer.bias.detach().double().numpy() - bias).max(),
        )

    plain = off()
    with exact_products(layer):
        assert torch.equal(layer.weight, deployed.weight)
        assert torch.equal(layer.bias, deployed.bias)
        assert layer.weight.dtype == torch.float32 and off() < plain / 2
    assert off() == plain
    # What rounds is computed in the type of the training, by ``deploy`` too.
    stack = nn.Sequential(nn.Linear(8, 8))
    factorize(stack[0], HRFOptions(ratio=2))
    parametrize.register_parametrization(stack[0], "weight", Rounded())
    with exact_products(stack):
        assert not any(getattr(part, "in_float64", False) for part in stack.modules())


class Rounded(nn.Module):
    """A parametrization that rounds."""

    rounds = True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.round()
