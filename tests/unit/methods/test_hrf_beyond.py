"""HRF on wide convolutions and recurrent layers, against layers that are made factor by factor."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import deploy, parameter_count
from espnet_ext.methods.hrf import HRFOptions, apply_hrf, factorize, hrf_factors
from espnet_ext.methods.registry import METHODS

CONVOLUTIONS = {
    "subsampling": (nn.Conv2d, (3, 8, 3), {"stride": 2}),
    "no bias": (nn.Conv2d, (3, 8, (3, 5)), {"stride": (2, 1), "bias": False}),
    "padded": (nn.Conv1d, (6, 10, 5), {"padding": 2, "dilation": 2}),
    "reflected": (nn.Conv1d, (6, 10, 5), {"padding": 2, "padding_mode": "reflect"}),
    "depthwise": (nn.Conv1d, (6, 6, 7), {"padding": 3, "groups": 6}),
    "grouped": (nn.Conv2d, (6, 9, 3), {"padding": 1, "groups": 3}),
    "strided": (nn.Conv1d, (4, 6, 1), {"stride": 2}),
}


def randomised(layer: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.eval()


def through_the_factors(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution with the wide kernel, then pointwise ones of as many groups."""
    groups, count = layer.groups, layer.in_channels // layer.groups
    biases = list(hrf_factors(layer.parametrizations.bias)) if layer.bias is not None else []
    for step, factor in enumerate(hrf_factors(layer.parametrizations.weight)):
        kind = type(layer).__mro__[1]
        kernel = layer.kernel_size if step == 0 else (1,) * len(layer.kernel_size)
        weight = factor.reshape(-1, count if step == 0 else factor.shape[-1], *kernel)
        names = ("stride", "padding", "dilation", "padding_mode") if step == 0 else ()
        options = {name: getattr(layer, name) for name in names}
        made = kind(
            weight.shape[1] * groups,
            len(weight),
            kernel,
            groups=groups,
            bias=bool(biases),
            **options,
        )
        made.weight.data = weight
        if biases:
            made.bias.data = biases[step]
        x = made.double()(x)
    return x


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("ratio", [1, 1.5, 4])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_its_factors_one_after_another(name, ratio, factors):
    kind, sizes, options = CONVOLUTIONS[name]
    plain = kind(*sizes, **options).double()
    layer = copy.deepcopy(plain)
    factorize(layer, HRFOptions(sites=("wide_conv",), ratio=ratio, factors=factors))
    randomised(layer)
    x = torch.randn(2, sizes[0], *(30,) * len(layer.kernel_size), dtype=torch.float64)
    expected = through_the_factors(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    merged = deploy(layer)
    assert type(merged) is kind
    assert str(merged) == str(plain)  # kernel, stride, padding and the rest
    assert {k: v.shape for k, v in merged.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    torch.testing.assert_close(merged(x), expected, rtol=1e-9, atol=1e-9)
    assert parameter_count([layer]) > parameter_count([merged])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_initialisation_keeps_the_spread_of_a_convolution(name):
    kind, sizes, options = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = kind(*(16 * s for s in sizes[:2]), sizes[2], **options | {"groups": 1})
    before = layer.weight.std().item()
    factorize(layer, HRFOptions(ratio=4, factors=3))
    assert layer.weight.std().item() == pytest.approx(before, rel=0.06)


RECURRENT = {
    "lstm": lambda: nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True),
    "projected": lambda: nn.LSTM(5, 6, batch_first=True, proj_size=3),
    "gru": lambda: nn.GRU(5, 6, 2, batch_first=True),
    "no bias": lambda: nn.GRU(5, 6, batch_first=True, bias=False),
}


def products(layer: nn.Module, name: str) -> torch.Tensor:
    """The weight or the folded bias ``name``, multiplied out here."""
    kind, rest = name.split("_", 1)
    weights = hrf_factors(layer.parametrizations[f"weight_{rest}"])
    if kind == "weight":
        return torch.linalg.multi_dot(weights[::-1])
    folded = torch.zeros(len(weights[0]), dtype=torch.float64)
    for weight, bias in zip(
        [torch.eye(len(weights[0]), dtype=torch.float64), *weights[1:]],
        hrf_factors(layer.parametrizations[name]),
        strict=True,
    ):
        folded = weight @ folded + bias
    return folded


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_computes_with_the_products(name, factors):
    layer, plain = RECURRENT[name]().double(), RECURRENT[name]().double()
    factorize(layer, HRFOptions(sites=("recurrent",), ratio=1.5, factors=factors))
    randomised(layer.double())  # moving a layer makes torch collect its weights anew
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if key in layer.parametrizations:
                parameter.copy_(products(layer, key))
            else:
                parameter.copy_(getattr(layer, key))
    assert len(layer.parametrizations) == len(list(plain.parameters()))
    x = torch.randn(3, 9, 5, dtype=torch.float64, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([9, 7, 2]), batch_first=True)
    for model in (layer, copy.deepcopy(layer), deploy(layer)):
        torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            model(packed)[0].data, plain(packed)[0].data, rtol=1e-9, atol=1e-9
        )
    merged = deploy(layer)
    assert str(merged) == str(plain)
    assert list(merged.state_dict()) == list(plain.state_dict())
    layer.train()
    layer.flatten_parameters()
    layer(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_a_step_of_training_is_seen_at_once():
    layer = nn.LSTM(5, 6)
    factorize(layer, HRFOptions(sites=("recurrent",)))
    x = torch.randn(4, 2, 5)
    before = layer(x)[0]
    before.sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * parameter.grad
    assert (layer(x)[0] - before).abs().max() > 1e-4
    state = layer.state_dict()
    other = nn.LSTM(5, 6)
    factorize(other, HRFOptions(sites=("recurrent",)))
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(other(x)[0], layer(x)[0])


def test_sites_take_what_they_name():
    def model() -> nn.Module:
        parts = {"conv": nn.Conv2d(1, 4, 3), "rnn": nn.GRU(4, 4), "w_1": nn.Linear(4, 4)}
        return nn.ModuleDict({**parts, "pointwise_conv1": nn.Conv1d(4, 4, 1)})

    found = {
        site: [
            name
            for name, part in apply_hrf(model(), HRFOptions(sites=site)).items()
            if parametrize.is_parametrized(part)
        ]
        for site in ("wide_conv", "recurrent", "conv", "all", ("all", "recurrent", "wide_conv"))
    }
    assert found == {
        "wide_conv": ["conv"],
        "recurrent": ["rnn"],
        "conv": ["pointwise_conv1"],
        "all": ["w_1", "pointwise_conv1"],
        ("all", "recurrent", "wide_conv"): ["conv", "rnn", "w_1", "pointwise_conv1"],
    }
    # The paper's sites under their own name; in the encoder they need layers of each.
    assert HRFOptions(sites="paper").sites == ("ffn", "qkv", "project", "cls")
    assert HRFOptions(sites=["cls", "paper"]).sites == ("cls", "ffn", "qkv", "project")
    with pytest.raises(UserError, match="no layer at site 'recurrent'"):
        apply_hrf(nn.Linear(2, 2), HRFOptions(sites="recurrent"))
    with pytest.raises(UserError, match="unknown site 'recurrent'"):
        METHODS["residual"].parse({"sites": ["recurrent"]})


def test_a_parametrization_that_is_not_ours_is_refused_in_one_line():
    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    layer = nn.ConvTranspose1d(4, 4, 3)
    parametrize.register_parametrization(layer, "weight", Negative())
    with pytest.raises(UserError, match="cannot deploy a ") as caught:
        deploy(layer.eval())
    assert "\n" not in str(caught.value)
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)).eval()
    x = torch.randn(1, 4, 9)
    torch.testing.assert_close(
        deploy(weight_norm)(x), F.conv1d(x, weight_norm.weight, weight_norm.bias)
    )


@pytest.mark.parametrize(
    ("encoder", "conf", "refused"),
    [
        ("rnn", {"dropout": 0.1}, True),
        ("hrf_vgg_rnn", {"dropout": 0.1}, True),
        ("hrf_rnn", {"dropout": 0.0}, False),
        ("rnn", {"dropout": 0.1, "use_projection": False}, False),
        ("conformer", {"dropout": 0.1}, False),
    ],
)
def test_dropout_that_espnet_leaves_on_in_decoding_is_refused(encoder, conf, refused):
    espnet = {"encoder": encoder, "encoder_conf": conf}
    config = Config(Path("train_x.yaml"), "x", Recipe(), espnet)
    warnings = [line for line in recipe_problems(config) if "in decoding too" in line]
    assert len(warnings) == refused
