"""Integers of a family's members, and the bits of their blocks."""

import pytest
import torch

from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import apply_nested
from espnet_ext.methods.nested_options import Member, NestedOptions
from espnet_ext.methods.nested_precision import (
    block_bits,
    compression,
    packed_weights,
    quantised_weights,
)
from espnet_ext.methods.quantise import dequantise
from tests.unit.methods.test_nested import family, plain

GROUPS = {"per": "group", "group": 2}  # 10 and 24 inner units, 16 others


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per": "tensor"},
        {"scale": "learnt"},
        GROUPS,
        {**GROUPS, "scale": "learnt"},
        {"scale": "deviation"},
    ],
)
def test_integers_times_scales_are_the_weights_to_the_last_bit(options):
    encoder = family(**options).eval()
    for name in ("3L-24-8b", "L0.2-10-4b"):
        small = deploy(encoder, name).state_dict()
        found = packed_weights(encoder, name)
        assert set(found) == set(quantised_weights(deploy(encoder, name)))
        for key, (ints, scale, bits) in found.items():
            assert ints.dtype == torch.int8 and bits == int(name[-2])
            assert torch.equal(dequantise(ints, scale), small[key]), key
    with pytest.raises(UserError, match="32 bits"):
        packed_weights(encoder, "3L-24-32b")
    with pytest.raises(UserError, match="no family"):
        packed_weights(plain(), "3L-24-8b")


# Bits of the blocks at 32 over those of a member, reference counting of arXiv 2406.10160.
RATIOS = {
    (12, 2048): (1.00, 3.95, 7.79, 15.12),
    (12, 1024): (1.66, 6.54, 12.83, 24.67),
    (8, 2048): (1.50, 5.93, 11.68, 22.68),
    (8, 1024): (2.49, 9.82, 19.24, 37.01),
}


def test_compression_at_the_papers_size():
    paper = {"output_size": 256, "attention_heads": 4, "cnn_module_kernel": 31}
    options = NestedOptions(depths=[12, 8], widths=[2048, 1024], bits=[32, 8, 4, 2])
    with torch.device("meta"):  # sizes only: no memory for the weights
        encoder = apply_nested(plain(**paper, num_blocks=12, linear_units=2048), options)
        for (depth, width), ratios in RATIOS.items():
            small = plain(**paper, num_blocks=depth, linear_units=width)
            for bits, ratio in zip((32, 8, 4, 2), ratios, strict=True):
                name = Member(tuple(range(depth)), width, bits).name
                assert compression(encoder, small, name) == pytest.approx(ratio, abs=0.005)
    assert block_bits(small, 32) // 32 == 8 * (2_639_616 - 2 * (2 * 256 * 1024 + 1024))
    assert compression(small, small, "merged") is None
