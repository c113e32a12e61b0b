"""Integers in few bits, quantised layers, and one weight at several widths in one place."""

import pytest
import torch
from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.methods.packing import (
    Quantised,
    pack,
    packed_bytes,
    quantise_layer,
    quantised_state,
    refine,
    refined,
    unpack,
)
from espnet_ext.methods.quantise import (
    QuantConf,
    fake_quantise,
    first_scale,
    integers,
    largest_integer,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 1001])
def test_packing_takes_the_bits_and_loses_nothing(bits, count):
    limit = largest_integer(bits)
    generator = torch.Generator().manual_seed(count)
    ints = torch.randint(-limit, limit + 1, (count,), dtype=torch.int8, generator=generator)
    packed = pack(ints, bits)
    assert packed.dtype == torch.uint8 and len(packed) == packed_bytes(count, bits)
    assert len(packed) == (count * bits + 7) // 8
    assert torch.equal(unpack(packed, bits, count), ints)


def test_the_layout_by_hand():
    assert pack(torch.tensor([1, -1, 7, -7], dtype=torch.int8), 4).tolist() == [0xF1, 0x97]
    assert pack(torch.tensor([1, 0, -1, 1, -1], dtype=torch.int8), 2).tolist() == [0x71, 0x03]
    assert pack(torch.tensor([-127, 5], dtype=torch.int8), 8).tolist() == [0x81, 0x05]
    bits = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.int8)
    assert pack(bits, 1).tolist() == [0x0D, 0x01]
    assert unpack(pack(bits, 1), 1, 9, signed=False).tolist() == bits.tolist()


def quantised(weight: Tensor, bits: int, per: str = "channel", scale: Tensor | None = None):
    return Quantised(*integers(weight, bits, per, scale), bits)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize(("fine", "coarse"), [(8, 4), (8, 2), (4, 2)])
def test_coarse_integers_come_back_from_the_fine_ones_and_little_more(fine, coarse, per, learnt):
    weight = noise(64, 300)
    weight[3] = 0.0
    weight[4, :150] = torch.linspace(-2, 2, 150)  # hits ties
    scales = [first_scale(weight, b, per) if learnt else None for b in (fine, coarse)]
    one, other = (quantised(weight, b, per, s) for b, s in zip((fine, coarse), scales, strict=True))
    more, width = refine(one, other)
    back = refined(one, other.scale, coarse, more, width)
    assert torch.equal(back.ints, other.ints) and torch.equal(back.scale, other.scale)
    # Asked only at the integers amid which the coarser one changes.
    asked = largest_integer(coarse) / largest_integer(fine)
    assert 8 * len(more) / weight.numel() < 1.5 * width * (asked**0.5 if learnt else asked)


def test_fine_integers_alone_do_not_give_the_coarse_ones():
    """Why ``refine`` is needed: weights of one 8-bit integer have two 4-bit ones."""
    weight = noise(64, 300)
    fine, coarse = quantised(weight, 8, "tensor").ints, quantised(weight, 4, "tensor").ints
    both = {(int(a), int(b)) for a, b in zip(fine.flatten(), coarse.flatten(), strict=True)}
    assert {b for a, b in both if a == 9} == {0, 1}
    more, width = refine(quantised(weight, 8, "tensor"), quantised(weight, 4, "tensor"))
    assert width == 1 and more.any() and (more != 255).any()


@pytest.mark.parametrize("coarse", [4, 2])
def test_weights_that_a_learnt_scale_clips_come_back(coarse):
    weight = noise(16, 400)
    one = quantised(weight, 8, scale=torch.tensor(0.5 / 127))  # most are clipped
    other = quantised(weight, coarse, scale=torch.tensor(3.0 / largest_integer(coarse)))
    more, width = refine(one, other)
    assert torch.equal(refined(one, other.scale, coarse, more, width).ints, other.ints)
    assert width > 1 or coarse == 2


def test_another_weight_is_refused():
    fine, coarse = quantised(noise(8, 8), 8), quantised(noise(8, 8, seed=1), 4)
    with pytest.raises(ValueError, match="not the same weight"):
        refine(fine, coarse)
    with pytest.raises(ValueError, match="not of this weight"):
        refined(fine, coarse.scale, 4, torch.zeros(99, dtype=torch.uint8), 1)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv1d(6, 6, 3, groups=6)])
def test_a_quantised_layer_computes_what_training_saw(bits, layer):
    weight = layer.weight.detach().clone()
    model = nn.Sequential(nn.Linear(2, 2), layer)
    layer.__dict__.pop("quantised", None)
    quantise_layer(layer, QuantConf(bits))
    assert torch.equal(layer.weight, fake_quantise(weight, bits))
    state = quantised_state(model)
    assert list(state) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    made = state["1.weight"]
    assert isinstance(made, Quantised) and torch.equal(made.dequantised(), layer.weight)
    assert all(torch.is_tensor(state[name]) for name in ("0.weight", "0.bias", "1.bias"))


def test_tied_layers_are_one_in_the_state():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    quantise_layer(model[1], QuantConf(4))
    state = quantised_state(model)
    assert list(state) == ["0.weight", "0.bias", "1.bias"]
    assert isinstance(state["0.weight"], Quantised)


def test_32_bits_change_nothing_and_nan_is_refused():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    quantise_layer(layer, QuantConf(32))
    assert torch.equal(layer.weight, before)
    assert all(torch.is_tensor(t) for t in quantised_state(layer).values())
    with pytest.raises(UserError, match="a scale holds NaN"):
        quantise_layer(layer, QuantConf(8), torch.tensor(float("nan")))
    assert torch.equal(layer.weight, before)
