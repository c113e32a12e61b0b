"""Integers in few bits, quantised layers, and one weight at several widths in one place."""

import pytest
import torch
from torch import Tensor, nn

from espnet_ext.formats.bits import (
    Quantised,
    pack,
    packed_bytes,
    quantised_state,
    refine,
    refined,
    unpack,
)
from espnet_ext.methods.quantise import first_scale, integers, largest_integer


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
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
    # 001 111 010: from the lowest bit on, 100 111 010.
    assert pack(torch.tensor([1, -1, 2], dtype=torch.int8), 3).tolist() == [0b10111001, 0b0]
    assert pack(torch.tensor([-31, 5], dtype=torch.int8), 6).tolist() == [0b01100001, 0b0001]
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


def test_a_state_holds_each_tensor_once_with_integers_for_its_products():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    made = quantised(model[1].weight, 4)
    state = quantised_state(model, {"1.weight": made})
    assert list(state)[:4] == ["0.weight", "0.bias", "1.bias", "2.weight"]
    assert state["0.weight"] is made
    assert {"2.running_mean", "2.running_var", "2.num_batches_tracked"} < set(state)
    assert all(torch.is_tensor(state[name]) for name in list(state)[1:])
    with pytest.raises(KeyError):
        quantised_state(model, {"1.wait": made})
