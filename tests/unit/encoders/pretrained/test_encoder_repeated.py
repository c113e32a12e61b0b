"""Layers of a Whisper, repeated: their equation, their start under residuals, and what is kept."""

import pytest
import torch

from espnet_ext.bridge.deployed.folder import untrained_arguments
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import deploy
from tests.fixtures import foundation
from tests.fixtures.speech_models import TINY, speech


def built(family="whisper", **conf):
    torch.manual_seed(2)
    return StackEncoder(1, architecture=TINY[family], **{"frozen": False, **conf}).eval()


def outputs(encoder, *samples):
    torch.manual_seed(3)
    waves, lengths = speech(*(samples or (16000, 9000)))
    return encoder(waves.unsqueeze(-1), lengths)[0]


def stack_outputs(stack, samples):
    torch.manual_seed(3)
    return stack(*speech(samples))[0]


@torch.no_grad()
@pytest.mark.parametrize("times", [1, 2, 3])
def test_each_layer_is_so_many_small_steps(times):
    plain, repeated = built(), built(repeat=times)
    torch.manual_seed(3)
    waves, lengths = speech(16000)
    h = plain.base.enter(*plain.base.front(waves, lengths))
    for layer in plain.base.layers:
        for _ in range(times):
            h = h + layer.self_attn(layer.self_attn_layer_norm(h))[0] / times
            inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(h)))
            h = h + layer.fc2(inner) / times
    wanted = plain.base.finish(h)
    torch.testing.assert_close(outputs(repeated, 16000), wanted, atol=1e-5, rtol=0)
    assert len(repeated.encoders) == times * len(plain.encoders)
    assert len({id(p) for p in repeated.parameters()}) == len(repeated.state_dict())


def test_shared_layers_start_exactly_there_and_learn():
    conf = {"repeat": 3, "residual": {"share": 3, "rank": 2}}
    plain, shared = built(repeat=3), built(**conf)
    found = outputs(shared)
    torch.testing.assert_close(found, outputs(plain), atol=1e-5, rtol=0)
    sizes = [sum(p.numel() for p in e.parameters()) for e in (built(), shared, plain)]
    assert sizes[0] < sizes[1] < sizes[2]
    found.square().sum().backward()
    factors = {n: p for n, p in shared.named_parameters() if n.endswith((".up", ".diagonal"))}
    assert len(factors) == 2 * 6 * len(shared.encoders)
    assert all(p.grad.abs().sum() > 0 for n, p in factors.items() if ".k_proj." not in n)
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        deployed = deploy(shared, "shared")
        torch.testing.assert_close(outputs(deployed), outputs(shared), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_repeated_model_moves_and_is_saved(tmp_path):
    foundation.make(tmp_path / "model")
    encoder = StackEncoder(1, str(tmp_path / "model"), frozen=False, repeat=2).eval()
    conf = encoder.portable_conf({"path": "model", "repeat": 2, "frozen": False})
    moved = StackEncoder(1, **conf).eval()
    moved.load_state_dict(encoder.state_dict())
    assert torch.equal(outputs(moved), outputs(encoder))
    encoder.base.save(tmp_path / "saved")
    saved = load_stack(tmp_path / "saved").eval()
    assert torch.equal(stack_outputs(saved, 16000), outputs(encoder, 16000))


def test_the_untrained_model_has_its_own_layers():
    conf = {"path": "model", "repeat": 3, "residual": {"share": 3}}
    found = untrained_arguments({"encoder_conf": conf, "decoder_conf": {}}, {"pad_to": 30})
    assert found["encoder_conf"] == {"path": "model", "pad_to": 30}


def test_no_mimic_is_in_the_place_of_repeated_layers():
    with pytest.raises(UserError, match="upto, repeat have no meaning together with mimic"):
        built(repeat=2, mimic={"kind": "linear", "width": 4, "first": 1})


@pytest.mark.parametrize(
    ("family", "times", "says"),
    [
        ("whisper", 0, "repeat must be a whole number from 1, not 0"),
        ("whisper", True, "repeat must be a whole number from 1, not True"),
        ("whisper", "3", "repeat must be a whole number from 1, not '3'"),
        ("wav2vec2", 2, "repeat is for whisper, not for wav2vec2"),
    ],
)
def test_what_cannot_be_repeated_is_refused(family, times, says):
    with pytest.raises(UserError, match=says):
        built(family, repeat=times)
