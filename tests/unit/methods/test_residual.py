"""ResidualTransformer: its equations by hand, its groups, its sizes, its variants."""

import io

import pytest
import torch
from torch import nn

from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import deploy, parameter_count, variants
from espnet_ext.methods.residual import (
    ResidualOptions,
    apply_residual,
    group_numbers,
)
from espnet_ext.methods.shared_linear import SharedLinear

D, FFN = 8, 12


class Stack(nn.Module):
    """Feed-forward layers with one normalisation each."""

    def __init__(self, layers: int):
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.ModuleDict(
                {"w_1": nn.Linear(D, FFN), "w_2": nn.Linear(FFN, D), "norm": nn.LayerNorm(D)}
            )
            for _ in range(layers)
        )

    def forward(self, x):
        for layer in self.encoders:
            x = x + layer["w_2"](torch.relu(layer["w_1"](layer["norm"](x))))
        return x


def stack(layers: int, **options) -> nn.Module:
    torch.manual_seed(0)
    return apply_residual(Stack(layers), ResidualOptions(sites=("ffn",), **options))


def stored(layer: nn.Module) -> nn.Parameter:
    """The parameter that the state dict has as ``weight``."""
    return dict(layer.named_parameters())["weight"]


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize(
    ("share", "layers", "expected"),
    [
        (3, 6, [0, 0, 0, 1, 1, 1]),
        (3, 7, [0, 0, 0, 1, 1, 1, 2]),
        (1, 3, [0, 1, 2]),
        (4, 4, [0, 0, 0, 0]),
        ([1, 3, 2], 6, [0, 1, 1, 1, 2, 2]),
    ],
)
def test_groups(share, layers, expected):
    assert group_numbers(ResidualOptions(share=share), layers) == expected
    model = stack(layers, share=share, rank=2)
    bases = [layer["w_1"].parametrizations.weight.original for layer in model.encoders]
    for one in range(layers):
        for other in range(layers):
            assert (bases[one] is bases[other]) == (expected[one] == expected[other])
    assert len({id(layer["norm"].weight) for layer in model.encoders}) == layers


def test_equation_by_hand():
    """y = (U + A B + D)^T x + b with the paper's A (M, R), B (R, N), D (M, N) diagonal."""
    model = randomised(stack(3, share=3, rank=2))
    x = torch.randn(5, D)
    for layer in model.encoders:
        parts = layer["w_1"].parametrizations
        U = parts.weight.original.T
        A, B = parts.weight[0].down.T, parts.weight[0].up.T
        W = torch.zeros(D, FFN)
        for m in range(D):
            for n in range(FFN):
                W[m, n] = U[m, n] + sum(A[m, r] * B[r, n] for r in range(2))
            W[m, m] += parts.weight[0].diagonal[m]
        expected = x @ W + parts.bias.original
        assert (layer["w_1"](x) - expected).abs().max() < 1e-5
    first, second = (layer["w_1"].weight for layer in model.encoders[:2])
    assert (first - second).abs().max() > 0.1


def test_training_starts_at_the_shared_model():
    shared = stack(4, share=2, rank=0, diagonal=False)
    residual = stack(4, share=2, rank=3)
    missing, unexpected = residual.load_state_dict(shared.state_dict(), strict=False)
    assert unexpected == []
    assert {name.rsplit(".", 1)[1] for name in missing} == {"down", "up", "diagonal"}
    x = torch.randn(3, D)
    assert torch.equal(shared(x), residual(x))


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"rank": 0, "diagonal": False}, 0),
        ({"rank": 0}, 2 * D),
        ({"rank": 2, "diagonal": False}, 2 * 2 * (D + FFN)),
        ({"rank": 2}, 2 * 2 * (D + FFN) + 2 * D),
    ],
)
def test_sizes_by_hand(options, own):
    layers, groups = 5, 2  # groups of 4 and 1: the last has nothing to share, so no residual
    model = stack(layers, share=4, **options)
    base = groups * (2 * D * FFN + D + FFN) + layers * 2 * D
    assert parameter_count([model]) == base + 4 * own
    assert parameter_count([deploy(model.eval(), "shared")]) == base + 4 * own
    assert parameter_count([deploy(model, "merged")]) == parameter_count([Stack(layers)])


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("diagonal", [False, True])
def test_both_variants_keep_the_output_and_shared_keeps_one_base(rank, diagonal):
    model = randomised(stack(6, share=3, rank=rank, diagonal=diagonal))
    x = torch.randn(7, D)
    expected = model(x)
    assert variants(model) == ("merged", "shared")
    for variant in variants(model):
        assert (deploy(model, variant)(x) - expected).abs().max() < 1e-5
    shared = deploy(model, "shared")
    kinds = {type(layer["w_1"]) for layer in shared.encoders}
    assert kinds == {SharedLinear if rank or diagonal else nn.Linear}
    layers = [layer["w_1"] for layer in shared.encoders]
    assert stored(layers[0]) is stored(layers[2]) is not stored(layers[3])
    assert layers[0].bias is layers[2].bias
    assert not ({id(p) for p in shared.parameters()} & {id(p) for p in model.parameters()})


def test_form_shared_takes_what_deploy_writes():
    model = randomised(stack(4, share=2, rank=3))
    again = stack(4, share=2, rank=3, form="shared").eval()
    again.load_state_dict(deploy(model, "shared").state_dict(), strict=True)
    x = torch.randn(3, D)
    assert (again(x) - model(x)).abs().max() < 1e-5
    assert stored(again.encoders[0]["w_1"]) is stored(again.encoders[1]["w_1"])


def test_pointwise_convolution_as_the_variant_shared():
    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.ModuleDict({"pointwise_conv1": nn.Conv1d(D, D, 1)}) for _ in range(2)
            )

    options = ResidualOptions(share=2, rank=2, sites=("conv",))
    model = randomised(apply_residual(Convolutions(), options))
    shared = deploy(model, "shared")
    x = torch.randn(2, D, 9)
    for one, other in zip(model.layers, shared.layers, strict=True):
        y = one["pointwise_conv1"](x)
        assert (other["pointwise_conv1"](x) - y).abs().max() < 1e-5


def test_shared_file_is_as_large_as_its_parameters():
    """Within 2 % of 4 bytes a parameter, with 18 layers of 256: the file holds a base once."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024)
    encoder = nn.TransformerEncoder(layer, 18, enable_nested_tensor=False)
    model = apply_residual(encoder, ResidualOptions(share=6, rank=8, sites=("ffn",))).eval()
    for variant, size in ((v, deploy(model, v)) for v in variants(model)):
        written = io.BytesIO()
        torch.save(size.state_dict(), written)
        wanted = 4 * parameter_count([size])
        assert wanted < written.getbuffer().nbytes < 1.02 * wanted, variant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share must be"),
        ({"share": 2.5}, "share must be"),
        ({"share": []}, "share must be"),
        ({"share": [2, 0]}, "share must be"),
        ({"share": True}, "share must be"),
        ({"rank": -1}, "rank must be"),
        ({"rank": "8"}, "rank must be"),
        ({"diagonal": 1}, "diagonal must be"),
        ({"sites": ["cls"]}, "sites"),
        ({"form": "merged"}, "unknown form 'merged'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        ResidualOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 5}, "share 5 is more than the encoder's 4 layers"),
        ({"share": [2, 3]}, "hold 5 layers, the encoder has 4"),
        ({"share": 2, "rank": 9}, "rank 9 is more than a weight of 12 x 8"),
    ],
)
def test_options_that_do_not_fit_the_encoder(options, message):
    with pytest.raises(UserError, match=message):
        stack(4, **options)


def test_no_stack_and_a_method_twice_are_refused():
    with pytest.raises(UserError, match="no numbered stack"):
        apply_residual(nn.ModuleDict({"w_1": nn.Linear(2, 2)}), ResidualOptions(sites=("ffn",)))
    model = stack(2, share=2, rank=2)
    with pytest.raises(UserError, match="already has a method of this kind"):
        apply_residual(model, ResidualOptions(share=2, sites=("ffn",)))
