"""Encoder ``stack`` below a decoder: silence up to a length, masks in training, long speech."""

import pytest
import torch

from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from tests.fixtures import foundation
from tests.fixtures.speech_models import TINY, speech

MASKS = {"apply_time_warp": False, "apply_time_mask": False, "freq_mask_width_range": [4, 8]}


def built(family="whisper", **conf):
    torch.manual_seed(2)
    return StackEncoder(1, architecture=TINY[family], **{"frozen": False, **conf}).eval()


@torch.no_grad()
def test_the_encoder_of_a_whole_model_is_that_encoder(tmp_path):
    model = foundation.make(tmp_path)
    waves, lengths = speech(480000)
    stack = load_stack(tmp_path)
    mel = stack.log_mel(waves[0]).T.unsqueeze(0)
    wanted = model.model.encoder(mel).last_hidden_state
    torch.testing.assert_close(stack(waves, lengths)[0], wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_speech_is_filled_up_with_silence():
    waves, lengths = speech(16000, 9000)
    filled = torch.nn.functional.pad(waves, (0, 16000))
    found, frames, _ = built(pad_to=2)(waves.unsqueeze(-1), lengths)
    wanted, same, _ = built()(filled.unsqueeze(-1), torch.tensor([32000, 32000]))
    assert frames.tolist() == same.tolist() == [100, 100]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    _, frames, _ = built(pad_to=0.6)(waves.unsqueeze(-1), lengths)
    assert frames.tolist() == [50, 30]


@torch.no_grad()
def test_masks_are_for_training_alone():
    waves, lengths = speech(16000, 9000)
    masked, plain = built(masks={**MASKS, "num_freq_mask": 1}), built()
    wanted = plain(waves.unsqueeze(-1), lengths)[0]
    assert torch.equal(masked(waves.unsqueeze(-1), lengths)[0], wanted)
    assert masked.state_dict().keys() == plain.state_dict().keys()
    masked.base.train()
    assert (masked(waves.unsqueeze(-1), lengths)[0] - wanted).abs().max() > 1e-3


def test_the_longest_speech():
    assert built().most_samples == 480000
    assert built("wav2vec2").most_samples is None


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"pad_to": -1}, "pad_to must be 0 or more, not -1"),
        ({"pad_to": float("nan")}, "pad_to must be 0 or more"),
        ({"masks": MASKS, "frozen": True}, "masks needs a whisper and frozen: false"),
        ({"masks": MASKS, "family": "wav2vec2"}, "masks needs a whisper and frozen: false"),
        ({"masks": {"mask": 1}}, "masks: TypeError: .* unexpected keyword argument 'mask'"),
        ({"masks": {}}, "masks: ValueError: Either one of"),
        ({"masks": {**MASKS, "freq_mask_width_range": [8, 8]}}, "masks: AssertionError"),
    ],
)
def test_what_does_not_fit_is_refused(conf, says):
    with pytest.raises(UserError, match=says):
        built(**conf)
