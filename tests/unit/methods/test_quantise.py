"""Quantised weights: integers by hand, straight-through gradients, zeros and NaN."""

import pytest
import torch
from torch import Tensor

from espnet_ext.errors import UserError
from espnet_ext.methods.nested_options import NestedOptions
from espnet_ext.methods.quantise import (
    check_bits,
    dequantise,
    fake_quantise,
    first_scale,
    grouped_integers,
    integers,
    largest_integer,
    scale_by_deviation,
    scale_by_maximum,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("per", ["tensor", "channel", 7, 3])
@pytest.mark.parametrize("shape", [(5, 7), (6, 5, 1), (8, 1, 31), (4, 3, 3, 3), (2, 21), (3, 9, 7)])
def test_what_training_sees_is_what_the_file_holds(bits, per, shape):
    weight = noise(*shape) * 10.0 ** noise(shape[0], *[1] * (len(shape) - 1), seed=1)
    for scale in (None, first_scale(weight, bits, per) * 0.7):
        ints, used = integers(weight, bits, per, scale)
        assert ints.dtype == torch.int8 and ints.abs().max() <= largest_integer(bits)
        assert len(ints.unique()) > 2 or bits == 2
        inner = weight[0].numel()
        groups = inner // per if isinstance(per, int) and inner % per == 0 else 1
        parts = (shape[0], groups, *[1] * (len(shape) - 2))
        assert used.shape == (() if per == "tensor" else parts)
        assert torch.equal(fake_quantise(weight, bits, per, scale), dequantise(ints, used))


def test_by_hand():
    weight = torch.tensor([[7.0, 1.4, -1.6, 0.0], [-0.7, 0.04, 0.06, 0.7]])
    ints, scale = integers(weight, 4)
    torch.testing.assert_close(scale, torch.tensor([[1.0], [0.1]]))
    assert ints.tolist() == [[7, 1, -2, 0], [-7, 0, 1, 7]]
    ints, scale = integers(weight, 4, "tensor")
    assert scale.item() == pytest.approx(1.0) and ints.tolist() == [[7, 1, -2, 0], [-1, 0, 0, 1]]
    # Halves go to the even number, and a given scale clips.
    ints, _ = integers(torch.tensor([[0.5, 1.5, 2.5, -9.0, 9.0]]), 4, scale=torch.tensor(1.0))
    assert ints.tolist() == [[0, 2, 2, -7, 7]]
    assert integers(torch.tensor([[1.0, 0.51, 0.49, -0.51]]), 2)[0].tolist() == [[1, 1, 0, -1]]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_error_is_at_most_half_a_step(bits):
    weight = noise(16, 64)
    scale = scale_by_maximum(weight, bits)
    error = (fake_quantise(weight, bits) - weight).abs() / scale
    assert error.max() <= 0.5 + 1e-4 and error.max() > 0.45


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 0.0078, 1e-3, 1e-6])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_narrow_types_are_rounded_as_exactly_as_float32(kind, size, per):
    """In float16 the scale of a row below 0.0078 is no normal number at 8 bits."""
    narrow = (noise(8, 64).clamp(-3, 3) / 3 * size).to(kind)
    wanted = fake_quantise(narrow.float(), 8, per)
    assert (wanted - narrow.float()).abs().max() < 0.005 * narrow.float().abs().max()
    ints, scale = integers(narrow, 8, per)
    assert torch.equal(dequantise(ints, scale), wanted)
    assert torch.equal(fake_quantise(narrow, 8, per), wanted.to(kind))


def test_a_learnt_scale_and_gradients_in_float16():
    wide = (noise(6, 40) * 1e-3).half().float().requires_grad_()
    narrow = wide.detach().half().requires_grad_()
    scale = first_scale(narrow, 8)
    assert scale.dtype == torch.float32 and torch.equal(scale, first_scale(wide, 8))
    gradient = noise(6, 40, seed=3).half()
    fake_quantise(narrow, 8, scale=scale).backward(gradient)
    fake_quantise(wide, 8, scale=scale).backward(gradient.float())
    assert narrow.grad.dtype == torch.float16 and torch.equal(narrow.grad, wide.grad.half())


def test_32_bits_are_the_weight_itself():
    weight = noise(3, 4).requires_grad_()
    assert fake_quantise(weight, 32) is weight
    with pytest.raises(UserError, match="at 32 bits has no integers"):
        integers(weight, 32)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_gradient_passes_straight_through(bits, per):
    weight, gradient = noise(6, 9).requires_grad_(), noise(6, 9, seed=3)
    fake_quantise(weight, bits, per).backward(gradient)
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_gradients_with_a_learnt_scale_are_those_of_the_composed_operations(bits, per):
    """By torch's own derivatives, the rounding alone passed straight through."""
    weight, gradient = noise(6, 40).double(), noise(6, 40, seed=3).double()
    scale = first_scale(weight, bits, per) * 0.6  # some are clipped, at 8 bits too
    limit = largest_integer(bits)
    scale = torch.minimum(scale, 0.8 * scale_by_maximum(weight, bits, per))
    found, wanted = [
        (weight.clone().requires_grad_(), scale.clone().requires_grad_()) for _ in "12"
    ]
    fake_quantise(found[0], bits, per, found[1]).backward(gradient)

    ratio = (wanted[0] / wanted[1]).clamp(-limit, limit)
    (wanted[1] * (ratio + (ratio.round() - ratio).detach())).backward(gradient)
    assert torch.equal(found[0].grad == 0, wanted[0].grad == 0)
    assert 0 < (found[0].grad == 0).sum() < weight.numel()
    torch.testing.assert_close(found[0].grad, wanted[0].grad)
    factor = (weight.numel() / scale.numel() * limit) ** -0.5
    torch.testing.assert_close(found[1].grad, wanted[1].grad * factor)
    assert (found[1].grad != 0).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_a_learnt_scale_finds_a_smaller_error_than_the_maximum(bits):
    weight = noise(4, 256)
    scale = first_scale(weight, bits).requires_grad_()
    optimiser = torch.optim.Adam([scale], lr=0.01)
    for _ in range(200):
        optimiser.zero_grad()
        (fake_quantise(weight, bits, scale=scale) - weight).square().sum().backward()
        optimiser.step()
    learnt = (fake_quantise(weight, bits, scale=scale) - weight).square().sum()
    assert learnt < 0.9 * (fake_quantise(weight, bits) - weight).square().sum()


@pytest.mark.parametrize("per, rows", [("tensor", 1), ("channel", 6), (4, 18)])
def test_a_scale_by_deviation_is_a_multiple_of_the_root_mean_square(per, rows):
    weight = noise(6, 12) * torch.arange(1.0, 7.0).unsqueeze(1)
    scale = scale_by_deviation(weight, 0.75, per)
    expected = 0.75 * weight.double().reshape(rows, -1).square().mean(1).sqrt()
    assert scale.numel() == rows
    assert torch.allclose(scale.double().flatten(), expected, rtol=1e-3 if per == 4 else 1e-6)
    ints, found = integers(weight, 6, scale=scale)
    assert torch.equal(found, scale)
    assert ((weight - dequantise(ints, scale)).abs() <= scale.amax() * 0.501).all()
    assert torch.equal(scale_by_deviation(torch.zeros(2, 3), 0.75), torch.ones(2, 1))


def test_the_sign_of_a_learnt_scale_does_not_matter():
    weight, scale = noise(3, 8), first_scale(noise(3, 8), 4)
    assert torch.equal(
        fake_quantise(weight, 4, scale=-scale), fake_quantise(weight, 4, scale=scale)
    )
    assert (integers(weight, 4, scale=-scale)[1] > 0).all()


def test_a_part_with_the_scale_of_the_whole_is_a_part_of_the_whole():
    weight = noise(8, 12)
    scale = scale_by_maximum(weight, 4)
    part = fake_quantise(weight[:, :5], 4, scale=scale)
    assert torch.equal(part, fake_quantise(weight, 4)[:, :5])
    assert not torch.equal(part, fake_quantise(weight[:, :5], 4))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_zeros_stay_zeros(bits, per):
    weight = noise(4, 6)
    weight[1] = 0.0
    weight[2] = 1e-42  # its scale could not be held
    for scale in (None, first_scale(weight, bits, per)):
        quantised = fake_quantise(weight.requires_grad_(), bits, per, scale)
        assert not quantised[1:3].any() and torch.isfinite(quantised).all()
        quantised.sum().backward()
        assert torch.isfinite(weight.grad).all() and weight.grad[1].all()
    zeros = torch.zeros(3, 4)
    ints, scale = integers(zeros, bits, per)
    assert not ints.any() and not dequantise(ints, scale).any() and torch.isfinite(scale).all()


def test_nan_and_infinity_are_refused_in_integers_and_shown_in_training():
    for value in (float("nan"), float("inf")):
        weight = noise(3, 4)
        weight[1, 2] = value
        with pytest.raises(UserError, match="a weight holds NaN or infinite values"):
            integers(weight, 4)
        assert torch.isnan(fake_quantise(weight, 4)[1]).any()
        with pytest.raises(UserError, match="a scale holds NaN or infinite values"):
            integers(noise(3, 4), 4, scale=torch.full((3, 1), value))
    assert torch.isnan(fake_quantise(noise(3, 4), 4, scale=torch.tensor(float("nan")))).all()


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (5, "bits must be one of 32, 8, 6, 4, 3, 2, not 5"),
        (8.0, "bits must be one of 32, 8, 6, 4, 3, 2, not 8.0"),
        (True, "bits must be one of"),
    ],
)
def test_wrong_bits_are_named(bits, message):
    with pytest.raises(UserError, match=message):
        check_bits(bits)
    with pytest.raises(UserError, match=message):
        NestedOptions(bits=[8, bits])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "row"}, "nested: unknown per 'row'; did you mean 'group'"),
        ({"scale": "max"}, "nested: unknown scale 'max'; did you mean 'maximum'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        NestedOptions(bits=[8], **options)


def test_bits_that_are_not_offered_are_refused_everywhere():
    for function in (fake_quantise, integers, scale_by_maximum, first_scale):
        with pytest.raises(UserError, match="bits must be one of 32, 8, 6, 4, 3, 2, not 5"):
            function(noise(2, 2), 5)


# --- groups of inputs


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("shape", [(5, 96), (5, 32, 3), (4, 8, 2, 4)])
def test_groups_of_inputs_have_scales_of_their_own(bits, shape):
    weight = torch.randn(shape) * torch.logspace(-3, 0, shape[0]).view(-1, *[1] * (len(shape) - 1))
    ints, scale = grouped_integers(weight, bits)
    groups = weight[0].numel() // 32
    assert scale.shape == (shape[0], groups, *[1] * (len(shape) - 2))
    assert torch.equal(scale, scale.half().float())
    limit = largest_integer(bits)
    assert int(ints.abs().max()) <= limit
    expected = torch.empty_like(weight).view(shape[0], -1)
    for row in range(shape[0]):
        for group in range(groups):
            part = slice(32 * group, 32 * group + 32)
            values = weight.view(shape[0], -1)[row, part]
            s = scale.view(shape[0], -1)[row, group]
            assert 0.6 * values.abs().max() / limit <= s <= 1.005 * values.abs().max() / limit
            expected[row, part] = (values / s).round().clamp(-limit, limit) * s
    assert torch.equal(dequantise(ints, scale), expected.view(shape))


def test_groups_round_better_than_channels():
    weight = torch.randn(16, 256) * torch.logspace(-2, 0, 256)
    error = [
        (dequantise(*found) - weight).square().mean()
        for found in (grouped_integers(weight, 4), integers(weight, 4))
    ]
    assert error[0] < 0.5 * error[1]


def test_rows_that_are_no_multiple_of_a_group_have_a_scale_each():
    weight = torch.randn(3, 40)
    for one, other in zip(grouped_integers(weight, 4), integers(weight, 4), strict=True):
        assert torch.equal(one, other)


def test_groups_of_zeros_stay_zeros_and_tiny_ones_are_kept():
    weight = torch.zeros(2, 64)
    weight[0, :32] = 0.5
    assert torch.equal(dequantise(*grouped_integers(weight, 4)) != 0, weight != 0)
    weight[1] = 1e-9  # float16 has no such scale
    found = dequantise(*grouped_integers(weight, 8))
    torch.testing.assert_close(found, weight, rtol=0.005, atol=0)


@pytest.mark.parametrize("bits", [6, 4, 3])
def test_scales_of_groups_by_maximum_are_those_of_each_group_alone(bits):
    weight = noise(6, 96, seed=2)
    scale = scale_by_maximum(weight, bits, 32)
    assert scale.shape == (6, 3)
    for group, part in enumerate(weight.split(32, 1)):
        alone = scale_by_maximum(part, bits).half().float()
        assert torch.equal(scale[:, group : group + 1], alone)
        rounded = fake_quantise(part, bits, scale=alone)
        assert torch.equal(fake_quantise(weight, bits, 32).split(32, 1)[group], rounded)


def test_a_learnt_scale_of_groups_has_the_gradient_of_each_group_alone():
    weight = noise(4, 64, seed=3).requires_grad_()
    scale = first_scale(weight, 4, 32).requires_grad_()
    (fake_quantise(weight, 4, scale=scale) * noise(4, 64, seed=4)).sum().backward()
    for group in range(2):
        part = weight.detach().split(32, 1)[group].clone().requires_grad_()
        # Alone, it is the scale of a channel, which is not rounded to float16.
        alone = scale.detach()[:, group : group + 1].half().float().requires_grad_()
        given = noise(4, 64, seed=4).split(32, 1)[group]
        (fake_quantise(part, 4, scale=alone) * given).sum().backward()
        torch.testing.assert_close(weight.grad.split(32, 1)[group], part.grad)
        # Of numbers of a scale there are as many, of scales half as many.
        torch.testing.assert_close(scale.grad[:, group : group + 1], alone.grad)
