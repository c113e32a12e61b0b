"""Nested families: members, what a pass computes and shares, statistics, extraction, counting."""

import copy

import pytest
import torch
from torch import nn

from espnet_ext.encoders.family_outputs import encoder_outputs, plain_conf
from espnet_ext.errors import UserError
from espnet_ext.methods import nested_layers
from espnet_ext.methods.deploy import deploy, variants
from espnet_ext.methods.nested import apply_nested, find_stack, nested_stack
from espnet_ext.methods.nested_options import (
    Member,
    NestedOptions,
    Stack,
    family_members,
    find_member,
    members_of_step,
    parse_name,
)
from espnet_ext.methods.nested_precision import quantised_weights
from espnet_ext.methods.quantise import fake_quantise

CONF = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 3,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "cnn_module_kernel": 7,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}
FAMILY = {"depths": [3, [0, 2], 1], "widths": [24, 10], "bits": [32, 8, 4]}


def plain(seed: int = 0, **conf) -> nn.Module:
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    torch.manual_seed(seed)
    return ConformerEncoder(20, **{**CONF, **conf})


def family(seed: int = 0, **options) -> nn.Module:
    return apply_nested(plain(seed), NestedOptions(**{**FAMILY, **options}))


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 61, 20, generator=generator), torch.tensor([61, 43])


def all_outputs(encoder: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> dict:
    """The outputs of all members in one pass, the largest's by the encoder itself."""
    stack = nested_stack(encoder)
    with stack.running(stack.family) as exits:
        first, _, _ = encoder(x, lengths)
    found = encoder_outputs(encoder, exits, stack.family)
    assert torch.equal(found[stack.family[0]], first)
    return found


# ---- members


def test_members_are_the_grid_from_the_largest_to_the_smallest():
    found = family_members(
        NestedOptions(depths=[4, 2, [0, 3]], widths=[8, 4], bits=[8, 32]), Stack(4, 8)
    )
    names = [member.name for member in found]
    assert len(names) == 3 * 2 * 2
    assert (names[0], names[1], names[-1]) == ("4L-8-32b", "4L-8-8b", "2L-4-8b")
    assert "L0.3-4-32b" in names
    assert [parse_name(name) for name in names] == list(found)
    assert parse_name("L2-8b") == Member((2,), None, 8)
    assert find_member(found, "merged") == found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": 3}, "depths must be a list"),
        ({"depths": [0]}, "depths must be a list of numbers of layers or lists of layers"),
        ({"depths": [[]]}, "depths must be a list of numbers of layers or lists of layers"),
        ({"depths": [2]}, "depths must contain 3"),
        ({"depths": [4, 3]}, "depth 4 is more than the encoder's 3 layers"),
        ({"depths": [3, [0, 3]]}, "must rise and be of 0 to 2"),
        ({"depths": [3, [1, 0]]}, "must rise"),
        ({"widths": [24.0]}, "widths must be a list of whole numbers of at least 1, not [24.0]"),
        ({"widths": [10]}, "widths must contain 24"),
        ({"widths": [48, 24]}, "width 48 is more than the encoder's 24"),
        ({"bits": []}, "bits must be a list"),
        ({"bits": [5]}, "bits must be one of 32, 8, 6, 4, 3, 2, not 5"),
        ({"per": "row"}, "unknown per 'row'; did you mean 'group'"),
        ({"scale": "mean"}, "unknown scale 'mean'; did you mean 'learnt'"),
        ({"norm": "batch"}, "unknown norm"),
        ({"sample": -1}, "sample must be all or a number"),
        ({"sample": "some"}, "sample must be all or a number"),
        ({"sub_weight": -1.0}, "sub_weight must be a number of at least 0"),
        ({"kl_ctc": float("nan")}, "kl_ctc must be a number"),
        ({"weights": {"3L-24-9b": 1.0}}, "weights: unknown sub-network '3L-24-9b'; did you mean"),
        ({"weights": {"1L-24-8b": "x"}}, "weights must be members and numbers of at least 0"),
        ({"mean": 1}, "mean must be true or false"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        family_members(
            NestedOptions(**{"depths": [3, 1], "bits": [32, 8], **options}), Stack(3, 24)
        )
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"interctc_layer_idx": [1]}, "intermediate CTC"),
        ({"layer_drop_rate": 0.1}, "layer_drop_rate: 0"),
    ],
)
def test_encoders_that_skip_layers_are_refused(conf, message):
    with pytest.raises(UserError, match=message):
        apply_nested(plain(**conf), NestedOptions())


def test_an_encoder_without_feed_forward_networks_has_no_widths():
    with pytest.raises(UserError, match="has none"):
        family_members(NestedOptions(widths=[8]), Stack(2, None))
    with pytest.raises(UserError, match="2 stacks of layers"):
        find_stack(
            nn.ModuleDict(
                {
                    "a": nn.ModuleDict({"layers": nn.Sequential(nn.Linear(1, 1))}),
                    "b": nn.ModuleDict({"layers": nn.Sequential(nn.Linear(1, 1))}),
                }
            )
        )


def test_draws_repeat_by_step_and_reach_every_member():
    found = family_members(NestedOptions(depths=[3, 2, 1], bits=[32, 8, 4]), Stack(3, None))
    options = NestedOptions(sample=2, seed=5)
    drawn = [members_of_step(options, found, step) for step in range(60)]
    assert drawn == [members_of_step(options, found, step) for step in range(60)]
    assert all(step[0] == found[0] and step[-1] == found[-1] for step in drawn)
    assert all(len(set(step)) == len(step) == 4 for step in drawn)
    assert {member for step in drawn for member in step} == set(found)
    other = NestedOptions(sample=2, seed=6)
    assert drawn != [members_of_step(other, found, step) for step in range(60)]
    assert members_of_step(NestedOptions(sample=7), found, 0) == list(found)
    assert members_of_step(NestedOptions(sample=0), found, 3) == [found[0], found[-1]]


# ---- what one pass computes


@pytest.mark.parametrize("options", [{}, {"scale": "learnt"}, {"per": "tensor", "norm": "layer"}])
def test_one_pass_gives_every_member_as_it_is_alone(options):
    encoder = family(**options).eval()
    x, lengths = batch()
    with torch.no_grad():
        for norm in encoder.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        together = all_outputs(encoder, x, lengths)
        for member, output in together.items():
            small = deploy(encoder, member.name)
            alone, _, _ = small(x, lengths)
            assert (alone - output).abs().max() < 1e-5, member.name
    sums = {round(output.abs().sum().item(), 4) for output in together.values()}
    assert len(sums) == len(together)


def test_common_layers_run_once_and_weights_are_rounded_once(monkeypatch):
    encoder = family()
    stack = nested_stack(encoder)
    calls = []
    for name, layer in stack.named_children():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    rounded = []
    monkeypatch.setattr(
        nested_layers,
        "fake_quantise",
        lambda weight, bits, *more: rounded.append(bits) or fake_quantise(weight, bits, *more),
    )
    all_outputs(encoder, *batch())
    # For each of 2 widths x 3 precisions: layers 0, 1, 2 for 3 layers, whose first is
    # the whole of 1 layer and the first of [0, 2], which then needs a separate run.
    assert sorted(calls) == sorted(["0", "1", "2", "2"] * 6)
    weights = len(quantised_weights(encoder))
    assert weights == 3 * (5 + 4 + 3)  # attention, two feed-forward networks, convolutions
    assert sorted(rounded) == [4] * weights + [8] * weights


def test_gradients_are_those_of_members_run_one_by_one():
    encoder = family(scale="learnt")
    x, lengths = batch()
    targets = {m: torch.randn(16) for m in nested_stack(encoder).family}
    sum((out * targets[m]).mean() for m, out in all_outputs(encoder, x, lengths).items()).backward()
    shared = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    for member, target in targets.items():
        with nested_stack(encoder).as_member(member.name):
            (encoder(x, lengths)[0] * target).mean().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, atol=1e-5, rtol=1e-4)
        assert parameter.grad.abs().max() > 0 or "linear_k.bias" in name, name


def test_statistics_are_those_that_each_member_gathers_alone():
    before = family().train()
    stack = nested_stack(before)
    alone = {m: deploy(before.eval(), m.name).train() for m in stack.family}
    before.train()
    for seed in range(3):
        x, lengths = batch(seed)
        all_outputs(before, x, lengths)
        for small in alone.values():
            small(x, lengths)
    seen = set()
    for member, small in alone.items():
        deployed = deploy(before.eval(), member.name).state_dict()
        for name, tensor in small.state_dict().items():
            if "running" in name or "num_batches" in name:
                torch.testing.assert_close(deployed[name], tensor, atol=1e-5, rtol=1e-5)
                seen.add((name, round(tensor.double().sum().item(), 5)))
    # Not for want of differences: one set of statistics a layer would be 3 times 3 entries.
    assert len(seen) > 30


def test_norm_layer_has_no_statistics_and_its_config_keeps_it():
    encoder = family(norm="layer").eval()
    assert not any("running" in name for name in encoder.state_dict())
    conf = plain_conf({**CONF, "nested": {**FAMILY, "norm": "layer"}}, "L0.2-10-4b")
    assert (conf["num_blocks"], conf["linear_units"]) == (2, 10)
    again = apply_nested(
        plain(num_blocks=2, linear_units=10), NestedOptions(**conf["nested"])
    ).eval()
    small = deploy(encoder, "L0.2-10-4b")
    again.load_state_dict(small.state_dict())
    x, lengths = batch()
    with torch.no_grad():
        assert torch.equal(again(x, lengths)[0], small(x, lengths)[0])
    assert variants(again) == ("plain", "merged")


# ---- extracting members


def test_every_member_is_a_plain_smaller_encoder():
    encoder = family().eval()
    assert variants(encoder)[0] == "merged"
    names = {member.name: member for member in nested_stack(encoder).family}
    assert set(variants(encoder)[1:]) == set(names)
    for name, member in names.items():
        conf = plain_conf({**CONF, "nested": FAMILY}, name)
        assert "nested" not in conf
        small = deploy(encoder, name)
        stock = plain(seed=7, **{k: conf[k] for k in ("num_blocks", "linear_units")})
        assert {k: v.shape for k, v in small.state_dict().items()} == {
            k: v.shape for k, v in stock.state_dict().items()
        }
        # The leading units of the chosen layers, as they are at 32 bits.
        if member.bits == 32:
            own = encoder.state_dict()
            for place, layer in enumerate(member.layers):
                key = "encoders.{}.feed_forward{}.w_{}{}.{}"
                for macaron in ("", "_macaron"):
                    for number, cut in ((1, (slice(member.width),)), (2, (slice(None),))):
                        cut = cut if number == 1 else (slice(None), slice(member.width))
                        found = small.state_dict()[key.format(place, macaron, number, "", "weight")]
                        weight = key.format(
                            layer, macaron, number, ".parametrizations.weight", "original"
                        )
                        assert torch.equal(found, own[weight][cut])


def test_an_unknown_member_is_refused_with_the_nearest():
    encoder = family().eval()
    with pytest.raises(UserError, match="did you mean '3L-10-8b'"):
        deploy(encoder, "3L-10-9b")
    with pytest.raises(UserError, match="not the name of a sub-network"):
        parse_name("12 layers")


def test_a_broken_scale_is_refused_and_a_zero_row_is_not():
    encoder = family(scale="learnt").eval()
    broken = copy.deepcopy(encoder)
    scale = next(p for name, p in broken.named_parameters() if ".scales." in name)
    with torch.no_grad():
        scale[0] = float("nan")
    with pytest.raises(UserError, match=r"scales.* holds NaN"):
        deploy(broken, "3L-24-8b")
    for options in ({}, {"scale": "learnt"}, {"per": "tensor"}):
        encoder = family(**options)
        with torch.no_grad():
            for weight in quantised_weights(encoder).values():
                weight[0] = 0.0
        outputs = all_outputs(encoder, *batch())
        sum(output.square().mean() for output in outputs.values()).backward()
        assert all(torch.isfinite(output).all() for output in outputs.values())
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_one_steps_counter_is_saved_and_none_deployed():
    encoder = family(sample=1)
    assert "encoders.steps" in encoder.state_dict()
    assert "encoders.steps" not in deploy(encoder.eval(), "1L-10-4b").state_dict()
