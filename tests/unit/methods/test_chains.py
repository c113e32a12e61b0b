"""Several methods on one layer: what each pair computes, starts from, and deploys."""

import copy

import pytest
import torch
from torch import nn

from espnet_ext.bridge.build import arguments_of, build_model
from espnet_ext.bridge.checkpoint import build
from espnet_ext.bridge.deployed.folder import portable_arguments, stock_arguments
from espnet_ext.bridge.deployed.variants import computing, deploy_variant
from espnet_ext.config.training import Config, Recipe
from espnet_ext.data import tokenizer
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import dequantised, read_member, write_member
from espnet_ext.methods.chains import originals
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_options import NestedOptions
from espnet_ext.methods.quantise import fake_quantise
from espnet_ext.methods.registry import METHODS
from espnet_ext.methods.shared_linear import SharedLinear
from espnet_ext.methods.start import apply_to_trained
from tests.fixtures import foundation
from tests.unit.methods.test_nested_model import outputs, speech
from tests.unit.methods.test_start import encoded, experiment, model

OPTIONS = {
    "hrf": {"sites": ["ffn"], "ratio": 1.5, "factors": 3},
    "nested": {"bits": [32, 4], "per": "group", "group": 4},
    "residual": {"sites": ["ffn"], "share": 2, "rank": 2},
}
PAIRS = [("hrf", "nested"), ("hrf", "residual"), ("nested", "residual")]
ALL = [*PAIRS, ("hrf", "nested", "residual")]


class Layers(nn.Module):
    """A stack of linear layers of one shape."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(8, 12)}) for _ in range(4))

    def forward(self, x):
        return [layer.fc1(x) for layer in self.layers]


def applied(names, module):
    methods = [(METHODS[name], METHODS[name].parse(OPTIONS[name])) for name in names]
    apply_to_trained(module, *reversed(methods))  # their order is not that of the arguments
    return module


def randomised(module):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module.eval()


def by_hand(layer, names, bits):
    """The weight of a layer, step by step as the papers say."""
    chain = layer.parametrizations["weight"]
    weight = originals(chain)[0]
    if "hrf" in names:
        first, second, third = originals(chain)
        weight = third @ (second @ first)
    if "nested" in names and bits < 32:
        weight = fake_quantise(weight, bits, 4)
    if "residual" in names:
        residual = chain[-1]
        up, down = residual.up, residual.down
        if "nested" in names and bits < 32:  # per channel: rank 2 is no multiple of the group
            up = fake_quantise(residual.parametrizations["up"].original, 8)
            down = fake_quantise(residual.parametrizations["down"].original, 8, 4)
        weight = weight + up @ down
        across = torch.zeros(12, 8)
        across[range(8), range(8)] = residual.diagonal
        weight = weight + across
    return weight


@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_a_weight_is_rounded_before_residuals_and_after_factors(names):
    module = randomised(applied(names, Layers()))
    family = nested_stack(module)
    for bits in (32, 4) if family is not None else (32,):
        name = f"4L-12-{bits}b" if family is not None else "merged"
        with computing(module, name), torch.no_grad():
            for layer in module.layers.children():
                wanted = by_hand(layer.fc1, names, bits)
                torch.testing.assert_close(layer.fc1.weight, wanted, atol=1e-6, rtol=1e-6)
            deployed = deploy(module, name, torch.randn(2, 8))
        kinds = {type(layer.fc1) for layer in deployed.layers}
        shares = family is not None and "residual" in names
        assert kinds == {SharedLinear if shares else nn.Linear}
        if shares:
            bases = [layer.fc1.base for layer in deployed.layers]
            assert bases[0] is bases[1] and bases[2] is bases[3] and bases[0] is not bases[2]


@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_layers_that_share_have_the_same_base_whatever_computes_it(names):
    module = randomised(applied(names, Layers()))
    chains = [layer.fc1.parametrizations["weight"] for layer in module.layers]
    shared = [
        all(a is b for a, b in zip(originals(one), originals(other), strict=True))
        for one, other in zip(chains, chains[1:], strict=False)
    ]
    assert shared == ([True, False, True] if "residual" in names else [False] * 3)


@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_all_start_together_at_trained_layers(names):
    torch.manual_seed(2)
    plain = Layers()
    expected = copy.deepcopy(plain)
    if "residual" in names:  # the others start exactly
        expected = applied(["residual"], expected)
    module = applied(names, plain)
    x = torch.randn(5, 8)
    with torch.no_grad():
        for one, other in zip(module(x), expected(x), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_stacked_is_one_line():
    module = applied(["residual"], Layers())
    for name, words in (("residual", "of this kind"), ("hrf", "hrf has to be the first")):
        with pytest.raises(UserError, match=words):
            METHODS[name].apply(module, METHODS[name].parse(OPTIONS[name]))
    narrow = NestedOptions.parse({"widths": [12, 8], "bits": [32]})
    with pytest.raises(UserError, match="widths cannot be together with residual"):
        METHODS["nested"].apply(applied(["residual"], Layers()), narrow)
    shallow = NestedOptions.parse({"depths": [4, 3]})
    with pytest.raises(UserError, match=r"\[0, 1, 2\] keeps one"):
        apply_to_trained(
            Layers(),
            (METHODS["nested"], shallow),
            (METHODS["residual"], METHODS["residual"].parse(OPTIONS["residual"])),
        )


FOUR = {"encoder_layers": 4, "decoder_layers": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return foundation.seeded(tmp_path_factory, 2, max_target_positions=200, **FOUR)


def whisper(folder, decoders, **sections):
    nested = {"bits": [32, 4], "over": "model", "per": "group", "group": 8, "kl_ctc": 0.0}
    nested |= {"depths": [4, 2], **decoders}
    shared = {"share": 2, "rank": 4}
    return built(
        folder, {"nested": nested, "residual": shared, **sections}, residual=shared, **sections
    )


def built(folder, encoder, **decoder):
    """The model of a whole Whisper with sections of methods, and the arguments of its training."""
    whole = {
        "frontend": "raw",
        "encoder": "stack",
        "encoder_conf": {"path": str(folder), "frozen": False, **encoder},
        "decoder": "whisper",
        "decoder_conf": {"path": str(folder), **decoder},
        "model_conf": {"ctc_weight": 0.0},
        "token_type": "hugging_face",
    }
    found = Experiment.of(Config(folder / "train_x.yaml", "x", Recipe(), whole), root=folder)
    found.token_list.parent.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer.listed(*tokenizer.source_files(str(folder)))
    found.token_list.write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    return build_model(found), vars(arguments_of(found))


HRF = {"hrf": {"sites": ["ffn"], "ratio": 1.5}}


@pytest.mark.parametrize("sections", [{}, HRF], ids=["shared", "shared and factors"])
@pytest.mark.parametrize("decoders", [{}, {"decoder_depths": [4, 2]}], ids=["whole", "depths"])
def test_a_member_of_a_family_over_a_shared_whisper_is_stored_with_one_base(
    folder, tmp_path, decoders, sections
):
    model, arguments = whisper(folder, decoders, **sections)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.train()
    model(**speech())[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    for name in ("4L-48+4L-40-4b", "2L-48+2L-40-4b") if decoders else ("4L-48-4b", "2L-48-4b"):
        with computing(model, name):
            wanted = outputs(model)
        made = deploy_variant(model, name)
        write_member(made.state, tmp_path / "model.safetensors")
        state = read_member(tmp_path / "model.safetensors")
        conf = portable_arguments(stock_arguments(arguments, name), made.module)
        conf["token_list"] = model.token_list
        again = build(conf).eval()
        missing, unexpected = again.load_state_dict(dequantised(state), strict=False)
        # Names under which a tensor that is stored once is known, too.
        others = [name for name in missing if not name.endswith((".weight", ".bias"))]
        assert (unexpected, others) == ([], [])
        for one, other in zip(outputs(again), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        depth = int(name[0])
        for part, layers in (("encoder", depth), ("decoder", depth if decoders else 4)):
            bases = [v for k, v in state.items() if k.startswith(part) and "fc1.weight" in k]
            assert len(bases) == layers // 2
            # Small matrices outside the stacks of a family are not rounded.
            rounded = part == "encoder" or decoders
            assert {isinstance(base, Quantised) for base in bases} == {bool(rounded)}
        rounded = {v.bits for k, v in state.items() if isinstance(v, Quantised) and ".up" in k}
        assert rounded == {8}


def test_a_mimicked_whisper_is_rounded_with_its_mimic(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 1)
    model, arguments = built(folder, {"mimic": {"kind": "transformer", "width": 32, "first": 2}})
    randomised(model)
    made = deploy_variant(model, "whole+4b")
    write_member(made.state, tmp_path / "model.safetensors")
    state = read_member(tmp_path / "model.safetensors")
    mimics = {k: v for k, v in state.items() if ".mimic." in k and k.endswith("linear1.weight")}
    assert mimics and all(isinstance(one, Quantised) and one.bits == 4 for one in mimics.values())
    # The same model, its weights replaced by integers times scales of groups, loaded and computed.
    conf = portable_arguments(stock_arguments(arguments, "merged"), made.module)
    again = build(conf | {"token_list": model.token_list}).eval()
    again.load_state_dict(dequantised(state), strict=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                flat = weight.flatten(1)
                size = 32 if flat.shape[1] % 32 == 0 and flat.shape[1] > 32 else flat.shape[1]
                groups = flat.unflatten(1, (-1, size))
                stored = state[name]
                scale = stored.scale.reshape(len(flat), -1, 1)
                assert scale.shape[1] == groups.shape[1], name
                near = (groups / scale).round().clamp(-7, 7) * scale
                assert (near - groups).abs().max() <= groups.abs().max() / 7, name
                weight.copy_(near.reshape(weight.shape))
    for one, other in zip(outputs(again), outputs(model), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


SECTIONS = {
    "hrf": {"sites": ["ffn"], "ratio": 1.5},
    "residual": {"share": 2, "rank": 2},
    "nested": {"bits": [32, 4], "depths": [4, 2], "norm": "layer"},
}


@pytest.mark.parametrize(
    ("encoder", "sections", "variant", "deployed"),
    [
        ("residual_conformer", ["hrf", "residual"], "shared", "residual_conformer"),
        ("hrf_conformer", ["hrf", "residual"], "merged", "conformer"),
        ("nested_conformer", ["hrf", "nested"], "2L-24-4b", "nested_conformer"),
        ("nested_conformer", ["hrf", "nested", "residual"], "merged", "nested_conformer"),
    ],
)
def test_sections_of_an_encoder_of_espnet_stand_side_by_side(
    tmp_path, encoder, sections, variant, deployed
):
    chosen = {name: SECTIONS[name] for name in sections}
    made = model(tmp_path, encoder, chosen)
    randomised(made)
    arguments = vars(arguments_of(experiment(tmp_path, encoder, chosen)))
    arguments |= {"token_list": made.token_list, "normalize": None}
    with computing(made, variant):
        wanted = encoded(made)
    plain = deploy_variant(made, variant)
    conf = stock_arguments(arguments, variant)
    assert conf["encoder"] == deployed and "hrf" not in conf["encoder_conf"]
    again = build(conf).eval()
    again.load_state_dict(plain.module.state_dict())
    torch.testing.assert_close(encoded(again), wanted, atol=1e-5, rtol=1e-5)


def test_a_member_of_a_conformer_over_shared_layers_names_both_methods(tmp_path):
    chosen = {name: SECTIONS[name] for name in ("nested", "residual")} | {
        "nested": {"depths": [4, 2]}
    }
    made = model(tmp_path, "nested_conformer", chosen)
    randomised(made)
    arguments = vars(arguments_of(experiment(tmp_path, "nested_conformer", chosen)))
    arguments |= {"token_list": made.token_list, "normalize": None}
    conf = stock_arguments(arguments, "2L-24-32b")
    assert conf["encoder"] == "residual_conformer"
    assert conf["encoder_conf"]["residual"] == {"share": [2], "rank": 2, "form": "shared"}
    again = build(conf).eval()
    again.load_state_dict(deploy_variant(made, "2L-24-32b").module.state_dict())
    with computing(made, "2L-24-32b"):
        wanted = encoded(made)
    torch.testing.assert_close(encoded(again), wanted, atol=1e-5, rtol=1e-5)


def test_a_null_option_of_an_encoder_of_espnet_stays_null_where_it_is_deployed():
    """``input_layer: null`` is no subsampling; without it ESPnet's default would be built."""
    chosen = {"hrf": SECTIONS["hrf"], "residual": None, "input_layer": None}
    conf = {"encoder": "hrf_transformer", "encoder_conf": chosen}
    found = stock_arguments(conf)
    assert (found["encoder"], found["encoder_conf"]) == ("transformer", {"input_layer": None})
