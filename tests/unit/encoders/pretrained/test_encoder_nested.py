"""Families of pretrained stacks: every member as it is alone, saved and loaded by transformers."""

import copy

import pytest
import torch

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from tests.fixtures import speech_models

NESTED = {"depths": [4, [0, 2], 1], "widths": [48, 20], "bits": [32, 4], "kl_decoder": 0.0}


def encoder(folder, nested=NESTED, **conf):
    from espnet_ext.encoders.pretrained.encoder import StackEncoder

    return StackEncoder(1, **{"path": str(folder), "frozen": "front", **conf}, nested=nested)


@pytest.mark.parametrize(("family", "large"), speech_models.ALL, ids=str)
def test_every_member_is_as_it_is_alone(tmp_path, family, large):
    from espnet_ext.encoders.family_outputs import encoder_outputs
    from espnet_ext.encoders.pretrained.encoder import StackEncoder
    from espnet_ext.methods.deploy import deploy
    from espnet_ext.methods.nested import nested_stack

    torch.manual_seed(1)
    speech_models.make(tmp_path / "model", family, large)
    whole = encoder(tmp_path / "model").eval()
    stack = nested_stack(whole)
    waves, lengths = speech_models.speech(3000, 2200)
    with torch.no_grad():
        with stack.running(stack.family) as exits:
            first, frames, _ = whole(waves.unsqueeze(-1), lengths)
        found = encoder_outputs(whole, exits, stack.family)
        assert torch.equal(found[stack.family[0]], first)
        for member, output in found.items():
            small = deploy(whole, member.name)
            small.stack.save(tmp_path / member.name)
            # Read from its folder: transformers' config has the sizes.
            again = StackEncoder(1, path=str(tmp_path / member.name)).eval()
            assert (again.stack.num_layers, small.architecture) == (
                len(member.layers),
                again.architecture,
            )
            for model in (small, again):
                alone, alone_frames, _ = model(waves.unsqueeze(-1), lengths)
                assert torch.equal(alone_frames, frames)
                for row, count in enumerate(frames.tolist()):
                    difference = (alone[row, :count] - output[row, :count]).abs().max()
                    assert difference < 1e-5, member.name
    outputs = {round(output.abs().sum().item(), 2) for output in found.values()}
    assert len(outputs) == len(found) == 12


def test_the_loss_trains_all_layers_and_not_the_front(tmp_path):
    from espnet_ext.bridge.build import build_model
    from espnet_ext.config.training import Config, Recipe

    speech_models.make(tmp_path / "model", "wav2vec2")
    espnet = {"encoder": "stack", "frontend": "raw", "normalize": None}
    espnet["encoder_conf"] = {"path": str(tmp_path / "model"), "frozen": "front", "nested": NESTED}
    espnet["model_conf"] = {"ctc_weight": 1.0}
    model = build_model(
        Experiment.of(Config(tmp_path / "x.yaml", "x", Recipe(), espnet)), 9
    ).train()
    waves, lengths = speech_models.speech(9000, 8000)
    text = torch.tensor([[2, 3, 4], [5, 6, -1]])
    loss, stats, _ = model(waves, lengths, text, torch.tensor([3, 2]))
    assert {"loss_smallest", "kl_ctc"} <= set(stats)
    loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert any(".layers.3." in name and "intermediate_dense" in name for name in reached)
    assert not any("feature_extractor" in name for name in reached)


@pytest.mark.parametrize(
    ("family", "conf", "message"),
    [
        ("wav2vec2", {"frozen": True}, "nested needs frozen: false or front"),
        ("wav2vec2", {"mimic": {"width": 8}}, "nested needs frozen: false or front, and no mimic"),
        (
            "wav2vec2",
            {"nested": None, "hrf": {"sites": ["ffn"]}, "mimic": {"width": 8}},
            "hrf needs frozen: false or front, and no mimic",
        ),
        (
            "wav2vec2",
            {"nested": None, "residual": {"share": 2}, "mimic": {"width": 8}},
            "residual needs frozen: false or front, and no mimic",
        ),
        ("wav2vec2", {"upto": 2}, "leave out upto"),
        ("wavlm", {"nested": {"depths": [4, [1, 2]]}}, "lacks layer 0: WavLM"),
        ("wav2vec2", {"nested": {"depths": [5]}}, "depth 5 is more than the encoder's 4 layers"),
    ],
)
def test_what_it_refuses(tmp_path, family, conf, message):
    speech_models.make(tmp_path / "model", family)
    with pytest.raises(UserError, match=message):
        encoder(tmp_path / "model", **copy.deepcopy(conf))
