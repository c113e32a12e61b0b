"""SpeechFormer against independent paths: banded full attention, merging by hand, its numbers."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention

from espnet_ext.encoders.speechformer import LocalAttention, Merge, SpeechFormerEncoder
from espnet_ext.errors import UserError


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return module.eval()


@pytest.mark.parametrize("window", [1, 2, 5, 8, 41, None])
@pytest.mark.parametrize("positions", [False, True])
def test_local_attention_is_full_attention_under_a_band(window, positions):
    local = randomise(LocalAttention(3, 12, 0.0, window, positions))
    full = MultiHeadedAttention(3, 12, 0.0).eval()
    full.load_state_dict(local.state_dict())
    x = torch.randn(2, 23, 12)
    lengths = torch.tensor([23, 9])
    inside = torch.arange(23) < lengths[:, None]
    distance = (torch.arange(23)[:, None] - torch.arange(23)).abs()
    reach = 23 if window is None else window // 2
    band = (distance <= reach) & inside[:, None, :]
    given = x
    if positions:
        angle = torch.arange(23)[:, None] / 10000 ** (torch.arange(0, 12, 2) / 12)
        given = x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    with torch.no_grad():
        got = local(x, x, x, inside.unsqueeze(1))
        expected = full(given, given, given, band)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_merge_averages_the_frames_of_the_utterance_only():
    merge = randomise(Merge(4, 3, expand=2))
    x = torch.randn(1, 8, 4)
    mask = torch.tensor([[[True] * 7 + [False]]])
    with torch.no_grad():
        got, kept = merge(x, mask)
        means = torch.stack([x[0, 0:3].mean(0), x[0, 3:6].mean(0), x[0, 6]])
        expected = merge.norm(means @ merge.linear.weight.T + merge.linear.bias)
    torch.testing.assert_close(got[0], expected)
    assert kept.tolist() == [[[True, True, True]]]
    assert got.shape == (1, 3, 8)


def test_stages_have_the_windows_and_merges_of_the_paper():
    """50, 400 and 2,000 ms; 50, 250 and 1,000 ms; in tokens of the stage, at 10 ms a frame."""
    encoder = SpeechFormerEncoder(78)
    # reach r is a window of 2 r + 1: 5 frames, 9 tokens of 50 ms, 9 tokens of 250 ms, all.
    assert [s.layers[0].self_attn.reach for s in encoder.encoders] == [2, 4, 4, None]
    assert [m.count for m in encoder.merges] == [5, 5, 4]
    assert [len(s.layers) for s in encoder.encoders] == [2, 2, 4, 4]
    assert encoder.encoders[0].layers[0].feed_forward.w_1.out_features == 39
    positions = [s.layers[0].self_attn.positions is not None for s in encoder.encoders]
    assert positions == [True, False, False, False]
    assert not encoder.encoders[0].layers[0].normalize_before
    with torch.no_grad():
        out, lengths, _ = encoder.eval()(torch.randn(2, 651, 78), torch.tensor([651, 99]))
    assert out.shape == (2, 7, 78)  # a token a second
    assert lengths.tolist() == [7, 1]


def test_expand_widens_and_half_the_width_feeds_forward():
    encoder = SpeechFormerEncoder(78, output_size=24, num_blocks=[1, 1, 1, 1], expand=[2, 1, 2])
    assert encoder.output_size() == 96
    assert [s.layers[0].size for s in encoder.encoders] == [24, 48, 48, 96]
    units = [s.layers[0].feed_forward.w_1.out_features for s in encoder.encoders]
    assert units == [12, 24, 24, 48]


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_very_short_utterance_is_one_token(frames):
    encoder = SpeechFormerEncoder(78, num_blocks=[1, 1, 1, 1]).eval()
    with torch.no_grad():
        out, lengths, _ = encoder(torch.randn(1, frames, 78), torch.tensor([frames]))
    assert (out.shape, lengths.tolist()) == ((1, 1, 78), [1])
    assert torch.isfinite(out).all()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"attention_heads: 8 .* width 78; .*1, 2, 3, 6, 13"):
        SpeechFormerEncoder(78, attention_heads=8)
    with pytest.raises(UserError, match="attention_heads: 0"):
        SpeechFormerEncoder(78, attention_heads=0)
    with pytest.raises(UserError, match="num_blocks"):
        SpeechFormerEncoder(78, num_blocks=[1, 1])
