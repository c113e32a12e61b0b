"""Methods that start from trained plain layers: exactly, or as near as they can."""

import numpy as np
import pytest
import torch
from torch import nn

from espnet_ext.bridge.build import arguments_of, build_model
from espnet_ext.bridge.checkpoint import build
from espnet_ext.bridge.deployed.folder import portable_arguments, stock_arguments
from espnet_ext.bridge.deployed.variants import deploy_variant
from espnet_ext.bridge.training.start_model import refuse_other_start
from espnet_ext.config.pretrained import Start
from espnet_ext.config.training import Config, Recipe
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.hrf import HRFOptions, apply_hrf
from espnet_ext.methods.registry import METHODS
from espnet_ext.methods.residual import ResidualOptions, apply_residual
from espnet_ext.methods.start import apply_to_trained, start_from_plain
from tests.fixtures import foundation
from tests.unit.methods.test_nested_model import outputs
from tests.unit.models.test_nested import batch

SIZES = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 4}
SIZES |= {"cnn_module_kernel": 7, "macaron_style": True}


class Layers(nn.Module):
    """A stack of convolutions, LSTMs and linear layers of one shape."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv1d(8, 8, 5, padding=2, groups=4)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.layers = nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(8, 12)}) for _ in range(3))

    def forward(self, x):
        x = self.rnn(self.wide(x.transpose(1, 2)).transpose(1, 2))[0]
        return [layer.fc1(x) for layer in self.layers]


def experiment(tmp_path, encoder, section, **over):
    espnet = {
        "encoder": encoder,
        "encoder_conf": {**SIZES, **section},
        "model_conf": {"ctc_weight": 1.0},
        "decoder": None,
        "input_size": 20,
        **over,
    }
    return Experiment.of(Config(tmp_path / "train_x.yaml", "x", Recipe(), espnet))


def model(tmp_path, encoder, section, seed=1):
    torch.manual_seed(seed)
    made = build_model(experiment(tmp_path, encoder, section), 9)
    made.normalize = None
    return made.eval()


@torch.no_grad()
def encoded(made):
    given = batch()
    return made.encode(given["speech"].clone(), given["speech_lengths"])[0]


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("ratio", [1, 2.5])
def test_hrf_starts_at_the_trained_layers_exactly(factors, ratio):
    torch.manual_seed(2)
    plain = Layers().eval()
    x = torch.randn(2, 9, 8)
    with torch.no_grad():
        wanted = plain(x)
        sites = ["ffn", "wide_conv", "recurrent"]
        options = HRFOptions(sites=sites, ratio=ratio, factors=factors)
        assert apply_to_trained(plain, (METHODS["hrf"], options)) == []
        assert "rnn.parametrizations.weight_hh_l0.original0" in plain.state_dict()
        for one, other in zip(plain(x), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    sum(out.square().sum() for out in plain(x)).backward()
    # All factors learn but the rows of the first that the last one leaves out.
    for name, parameter in plain.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("section", [{"sites": ["all"], "ratio": 2}, {"sites": ["ffn", "cls"]}])
def test_hrf_starts_from_a_plain_recogniser(tmp_path, section):
    plain = model(tmp_path, "conformer", {})
    made = model(tmp_path, "hrf_conformer", {"hrf": section}, seed=2)
    assert not torch.allclose(encoded(made), encoded(plain), atol=0.1)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    assert refuse_other_start(made, [Start(tmp_path / "plain.pth")]) == []
    # As ESPnet does with init_param: its own state, updated with the file's.
    made.load_state_dict({**made.state_dict(), **plain.state_dict()})
    torch.testing.assert_close(encoded(made), encoded(plain), atol=1e-5, rtol=1e-5)
    again = model(tmp_path, "hrf_conformer", {"hrf": section}, seed=3)
    again.load_state_dict(made.state_dict())
    assert torch.equal(encoded(again), encoded(made))
    part = model(tmp_path, "hrf_conformer", {"hrf": section}, seed=4).encoder
    part.load_state_dict({**part.state_dict(), **plain.encoder.state_dict()})


@pytest.mark.parametrize(("rank", "diagonal"), [(3, True), (2, False), (0, True), (0, False)])
def test_residuals_start_at_mean_diagonal_and_singular_vectors(rank, diagonal):
    torch.manual_seed(3)
    plain = Layers()
    weights = [layer.fc1.weight.detach().double().numpy() for layer in plain.layers]
    biases = [layer.fc1.bias.detach().clone() for layer in plain.layers]
    options = ResidualOptions(share=[2, 1], rank=rank, diagonal=diagonal, sites=["ffn"])
    lines = apply_to_trained(plain, (METHODS["residual"], options))
    mean = (weights[0] + weights[1]) / 2
    energy = kept = 0.0
    for number, weight in enumerate(weights[:2]):
        rest = weight - mean
        near = np.zeros_like(rest)
        if diagonal:
            np.fill_diagonal(near, np.diagonal(rest))
        u, s, v = np.linalg.svd(rest - near)
        near = near + (u[:, :rank] * s[:rank]) @ v[:rank]
        found = plain.layers[number].fc1.weight.detach().double().numpy()
        np.testing.assert_allclose(found, mean + near, atol=1e-6)
        energy += (rest**2).sum()
        kept += (rest**2).sum() - ((rest - near) ** 2).sum()
    assert lines == [
        f"residual: the residuals keep {100 * kept / energy:.1f} % of what layers differ in"
    ]
    assert torch.equal(plain.layers[2].fc1.weight.double(), torch.from_numpy(weights[2]))
    torch.testing.assert_close(plain.layers[0].fc1.bias, (biases[0] + biases[1]) / 2)
    first, second = (layer.fc1.parametrizations.weight.original for layer in plain.layers[:2])
    assert first is second


def test_residuals_start_at_zero_on_the_first_layer():
    torch.manual_seed(3)
    plain = Layers()
    trained = {name: tensor.clone() for name, tensor in plain.layers.state_dict().items()}
    options = ResidualOptions(share=[2, 1], rank=3, sites=["ffn"], start="first")
    lines = apply_to_trained(plain, (METHODS["residual"], options))
    assert lines == ["residual: the residuals keep 0.0 % of what layers differ in"]
    for layer, source in enumerate((0, 0, 2)):
        for name in ("weight", "bias"):
            found = getattr(plain.layers[layer].fc1, name)
            assert torch.equal(found, trained[f"{source}.fc1.{name}"])
    # Both factors at zero would never learn.
    sum(layer.fc1.weight.square().sum() for layer in plain.layers[:2]).backward()
    assert plain.layers[1].fc1.parametrizations.weight[0].up.grad.abs().sum() > 0


def test_a_start_at_the_first_layer_forgets_what_residuals_held(tmp_path):
    section = {"residual": {"share": 2, "rank": 4, "sites": ["ffn"], "start": "first"}}
    plain = model(tmp_path, "conformer", {})
    made = model(tmp_path, "residual_conformer", section, seed=2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "parametrizations" in name:
                parameter.normal_()
    made.load_state_dict({**made.state_dict(), **plain.state_dict()})
    layers = made.encoder.encoders
    wanted = plain.encoder.encoders[0].feed_forward.w_1.weight
    for layer in layers[:2]:
        assert torch.equal(layer.feed_forward.w_1.weight, wanted)


def test_residuals_of_full_rank_are_the_trained_model(tmp_path):
    plain = model(tmp_path, "conformer", {})
    with torch.no_grad():  # one bias is shared
        for layer in plain.encoder.encoders.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.fill_(0.1)
    section = {"residual": {"share": 2, "rank": 16, "diagonal": False}}
    made = model(tmp_path, "residual_conformer", section, seed=2)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    lines = refuse_other_start(made, [Start(tmp_path / "plain.pth")])
    assert lines == ["residual: the residuals keep 100.0 % of what layers differ in"]
    made.load_state_dict({**made.state_dict(), **plain.state_dict()})
    torch.testing.assert_close(encoded(made), encoded(plain), atol=1e-4, rtol=1e-4)
    # A sharing-only or residual state is no plain one: nothing is changed.
    state = made.state_dict()
    assert start_from_plain(made, state) == [] and state.keys() == made.state_dict().keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return foundation.seeded(tmp_path_factory, 2)


def whisper(folder, encoder, decoder):
    from espnet_ext.data import tokenizer

    path = str(folder)
    espnet = {
        "frontend": "raw",
        "encoder": "stack",
        "encoder_conf": {"path": path, "frozen": False, **encoder},
        "decoder": "whisper",
        "decoder_conf": {"path": path, **decoder},
        "model_conf": {"ctc_weight": 0.0},
        "token_type": "hugging_face",
    }
    found = Experiment.of(Config(folder / "train_x.yaml", "x", Recipe(), espnet))
    made = build_model(found, foundation.COUNT).eval()
    made.decoder.use_tokens(tokenizer.listed(*tokenizer.source_files(path)))
    return made, found


def test_hrf_in_a_pretrained_recogniser_starts_exactly_and_merges(folder):
    plain, _ = whisper(folder, {}, {})
    section = {"hrf": {"sites": ["ffn", "qkv"], "ratio": 2}}
    made, _ = whisper(folder, section, section)
    assert sum(p.numel() for p in made.parameters()) > sum(p.numel() for p in plain.parameters())
    for each in (made, deploy(made)):
        for one, other in zip(outputs(each), outputs(plain), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert deploy(made).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("where", ["encoder", "decoder", "both"])
def test_shared_layers_of_a_pretrained_recogniser_are_deployed_as_such(folder, where):
    section = {"residual": {"share": 2, "rank": 2}}
    if where == "both":  # with factors, which leave nothing behind
        section["hrf"] = {"sites": ["ffn"], "ratio": 1.5}
    encoder, decoder = section if where != "decoder" else {}, section if where != "encoder" else {}
    made, found = whisper(folder, encoder, decoder)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    plain, _ = whisper(folder, {}, {})
    assert deploy_variant(made, "merged").module.state_dict().keys() == plain.state_dict().keys()
    shared = deploy_variant(made, "shared").module
    for one, other in zip(outputs(shared), outputs(made), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    arguments = vars(arguments_of(found)) | {"token_list": made.token_list, "input_size": None}
    again = build(portable_arguments(stock_arguments(arguments, "shared"), shared)).eval()
    again.load_state_dict(shared.state_dict())
    again.decoder.prompt, again.decoder.languages = made.decoder.prompt, made.decoder.languages
    for one, other in zip(outputs(again), outputs(shared), strict=True):
        assert torch.equal(one, other)
    assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in plain.parameters())


def test_methods_applied_by_themselves_start_at_random():
    """Without trained weights nothing has changed: HRF draws its factors."""
    torch.manual_seed(4)
    plain = Layers()
    before = plain.layers[0].fc1.weight.detach().clone()
    apply_hrf(plain, HRFOptions())
    assert not torch.allclose(plain.layers[0].fc1.weight, before, atol=1e-3)
    shared = apply_residual(Layers(), ResidualOptions(share=3, rank=1, sites=["ffn"]))
    assert torch.equal(shared.layers[1].fc1.weight, shared.layers[0].fc1.weight)
