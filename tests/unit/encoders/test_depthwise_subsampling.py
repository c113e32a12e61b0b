"""The depthwise separable front end: what it computes, what it costs, that it is chosen by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

CONF = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 1}
LATEST = {"rel_pos_type": "latest"}  # the legacy one sees the padding of a batch


@pytest.fixture(scope="module")
def encoders():
    from espnet2.tasks import asr

    from espnet_ext.bridge.registry import CONV2D_BASES, install

    install()
    return {name: asr.encoder_choices.classes[name] for name in CONV2D_BASES}


def by_hand(conv: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The convolutions as the full ones that they are the product of."""
    x = F.conv2d(x, conv[0].weight, conv[0].bias, stride=2).relu()
    for pair in (part for part in conv if isinstance(part, nn.Sequential)):
        depth, point = pair
        # o x i x 3 x 3: what goes from channel i to o is i's kernel times one number.
        weight = point.weight * depth.weight.squeeze(1)
        bias = point.bias + point.weight.flatten(1) @ depth.bias
        x = F.conv2d(x, weight, bias, stride=2).relu()
    return x


@pytest.mark.parametrize(("layer", "factor"), [("dw_conv2d", 4), ("dw_conv2d8", 8)])
def test_it_is_a_product_of_full_convolutions(encoders, layer, factor):
    torch.manual_seed(0)
    encoder = encoders["conformer"](40, **CONF, **LATEST, input_layer=layer).eval()
    x = torch.randn(2, 96, 40)
    with torch.no_grad():
        found = encoder.embed.conv(x.unsqueeze(1))
        torch.testing.assert_close(found, by_hand(encoder.embed.conv, x.unsqueeze(1)))
        output, lengths, _ = encoder(x, torch.tensor([96, 61]))
        alone, alone_lengths, _ = encoder(x[1:, :61], torch.tensor([61]))
    assert abs(output.shape[1] - 96 / factor) <= 2
    assert lengths[1] == alone_lengths[0]
    torch.testing.assert_close(output[1, : lengths[1]], alone[0], atol=1e-5, rtol=0)


def test_every_encoder_takes_it_and_its_own_stay_as_they_were(encoders):
    for name, encoder in encoders.items():
        conf = {k: v for k, v in CONF.items() if k != "linear_units" or name != "branchformer"}
        separable = encoder(40, **conf, input_layer="dw_conv2d")
        full = encoder(40, **conf, input_layer="conv2d")
        plain = encoder.__mro__[1](40, **conf, input_layer="conv2d")
        assert {k: v.shape for k, v in full.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        count = sum(p.numel() for p in separable.embed.conv.parameters())
        # 1 to 16 channels, then 3 x 3 for each of 16, then 16 x 16; each with biases.
        assert count == 16 * 10 + 16 * 10 + 16 * 17
        assert sum(p.numel() for p in full.embed.conv.parameters()) == 16 * 10 + 16 * 16 * 9 + 16


def test_a_method_goes_on_an_encoder_with_it(encoders):
    from espnet2.tasks import asr

    found = asr.encoder_choices.classes["hrf_conformer"](40, **CONF, input_layer="dw_conv2d8")
    assert isinstance(found.embed.conv[2], nn.Sequential)
    assert any("parametrizations" in name for name in found.state_dict())


def test_an_unknown_one_is_refused(encoders):
    with pytest.raises(ValueError, match="dw_conv2d6"):
        encoders["conformer"](40, **CONF, input_layer="dw_conv2d6")
