"""Deployed layers whose parent reads their weight instead of calling them."""

import copy

import pytest
import torch
from torch import nn

from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import deploy, parameter_count, variants
from espnet_ext.methods.residual import ResidualOptions, apply_residual
from espnet_ext.methods.shared_linear import SharedLinear

NEAR = {"atol": 1e-6, "rtol": 0}
SITES = [("ffn",), ("project",), ("ffn", "project")]


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "parametrizations" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def torch_encoder(sites: tuple[str, ...]) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    return randomised(apply_residual(encoder, ResidualOptions(share=2, rank=8, sites=sites)))


@torch.no_grad()
@pytest.mark.parametrize("sites", SITES)
def test_transformer_encoder_of_torch(sites):
    """In evaluation without gradients it hands all weights to one kernel."""
    model = torch_encoder(sites)
    x = torch.randn(2, 20, 32)
    expected = model(x)
    for variant in variants(model):
        deployed = deploy(model, variant, example=x)
        torch.testing.assert_close(deployed(x), expected, **NEAR)
    bases = copy.deepcopy(model)
    for layer in bases.modules():
        if hasattr(layer, "parametrizations"):
            for part in (
                layer.parametrizations.weight[0].up,
                layer.parametrizations.weight[0].down,
            ):
                part.zero_()
    assert (bases(x) - expected).abs().max() > 0.1  # the residual matters


@torch.no_grad()
def test_multihead_attention_of_torch():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.MultiheadAttention(32, 4) for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x, x, x)[0]
            return x

    model = randomised(
        apply_residual(Attention(), ResidualOptions(rank=8, share=2, sites="project"))
    )
    x = torch.randn(9, 2, 32)
    shared = deploy(model, "shared", example=x)
    assert isinstance(shared.layers[0].out_proj, SharedLinear)
    for each in (shared, shared.train(), deploy(model)):
        torch.testing.assert_close(each(x), model(x), **NEAR)


@torch.no_grad()
@pytest.mark.parametrize("sites", [("qkv", "project"), ("qkv", "project", "ffn")])
def test_wavlm_of_transformers(sites):
    transformers = pytest.importorskip("transformers")
    config = transformers.WavLMConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
    )
    model = transformers.WavLMModel(config)
    model = randomised(apply_residual(model, ResidualOptions(share=2, rank=8, sites=sites)))
    x = torch.randn(1, 8000)
    expected = model(x).last_hidden_state
    for variant in variants(model):
        deployed = deploy(model, variant, example=x)
        torch.testing.assert_close(deployed(x).last_hidden_state, expected, **NEAR)


def test_the_weight_of_a_shared_layer_is_the_effective_one_and_stored_once():
    model = torch_encoder(("ffn",))
    shared = deploy(model, "shared")
    assert parameter_count([shared]) < parameter_count([deploy(model)])
    for one, other in zip(model.layers, shared.layers, strict=True):
        assert isinstance(other.linear1, SharedLinear)
        assert torch.equal(one.linear1.weight, other.linear1.weight)
        assert other.linear1.base is dict(other.linear1.named_parameters())["weight"]
    assert shared.layers[0].linear1.base is shared.layers[1].linear1.base
    # Through a file, a copy, another type, and training.
    again = copy.deepcopy(shared)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(shared.state_dict(), strict=True)
    again.load_state_dict(shared.state_dict(), strict=True, assign=True)
    for copied in (again, copy.deepcopy(shared).double()):
        x = torch.randn(1, 5, 32, dtype=copied.layers[0].linear1.base.dtype)
        torch.testing.assert_close(copied(x).float(), model(x.float()), atol=1e-5, rtol=0)
    again.train()(torch.randn(1, 5, 32)).sum().backward()
    layer = again.layers[0].linear1
    assert all(p.grad is not None for p in (layer.base, layer.up, layer.down, layer.diagonal))


def test_an_example_may_have_several_arguments():
    model, x = torch_encoder(("ffn",)), torch.randn(2, 20, 32)
    masked = (x, None, torch.arange(20) > torch.tensor([[19], [12]]))
    for variant in variants(model):
        found = deploy(model, variant, example=masked)(*masked)
        torch.testing.assert_close(found, model(*masked), atol=1e-5, rtol=0)


def test_an_example_with_another_output_is_refused():
    class Peeking(nn.Module):
        """A parent that does with a layer what no method foresees."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"w_1": nn.Linear(4, 4)})])

        def forward(self, x):
            layer = self.layers[0]["w_1"]
            return {"last": (layer(x), [x + hasattr(layer, "parametrizations")])}

    model = apply_residual(Peeking(), ResidualOptions(share=1, sites=("ffn",))).eval()
    x = torch.zeros(2, 4)
    for variant in variants(model):
        deploy(model, variant)
        with pytest.raises(UserError, match=rf"{variant} differs .* model by 1.0e\+00"):
            deploy(model, variant, example=x)


def test_a_method_that_shows_another_weight_is_refused(monkeypatch):
    monkeypatch.setattr(SharedLinear, "weight", property(lambda self: self.base))
    with pytest.raises(RuntimeError, match=r"SharedLinear\.weight is not the weight"):
        deploy(torch_encoder(("ffn",)), "shared")
