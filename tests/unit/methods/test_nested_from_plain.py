"""A family that starts from a plain encoder computes what that encoder computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.training.start_model import refuse_other_start
from espnet_ext.config.pretrained import Start
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.quantise import fake_quantise, first_scale
from tests.unit.methods.test_nested import CONF, FAMILY, batch, family, plain


def trained_plain() -> nn.Module:
    """A plain encoder with random weights and batch statistics."""
    module = plain(seed=3)
    generator = torch.Generator().manual_seed(4)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(1 + torch.rand(norm.num_features, generator=generator))
            norm.num_batches_tracked.fill_(7)
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"sample": 1}, {"scale": "learnt"}, {"bits": [32]}, {"widths": [24], "bits": [32]}],
)
def test_each_member_is_cut_out_of_the_plain_encoder(options):
    source, nested = trained_plain(), family(**options)
    nested.load_state_dict(source.state_dict())
    nested.eval()
    with torch.no_grad():
        wanted, lengths, _ = source(*batch())
        found, found_lengths, _ = nested(*batch())
    assert torch.equal(wanted, found) and torch.equal(lengths, found_lengths)
    state, stack = source.state_dict(), nested_stack(nested)
    for member in stack.family:
        alone = deploy(nested, member.name).state_dict()
        for place, layer in enumerate(member.layers):
            norm = "conv_module.norm.running_mean"
            name = f"encoders.{layer}.{norm}"
            assert torch.equal(alone[f"encoders.{place}.{norm}"], state[name])
            inner = "feed_forward.w_1.weight"
            weight = state[f"encoders.{layer}.{inner}"]
            if member.bits != 32:
                per, learnt = stack.options.per, stack.options.scale == "learnt"
                scale = first_scale(weight, member.bits, per) if learnt else None
                weight = fake_quantise(weight, member.bits, per, scale)
            assert torch.equal(alone[f"encoders.{place}.{inner}"], weight[: member.width])


def test_a_familys_own_state_is_loaded_as_it_is():
    one, other = family(seed=1), family(seed=2)
    one.train()(*batch())  # statistics of the largest network alone
    with nested_stack(one).as_member(nested_stack(one).family[-1].name):
        one(*batch(seed=5))
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_another_encoder_is_still_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        family().load_state_dict(plain(linear_units=32).state_dict())
    state = plain().state_dict()
    del state["encoders.1.feed_forward.w_1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*encoders\.1\.feed_forward\.w_1"):
        family().load_state_dict(state)


def config(**conf) -> Config:
    espnet = {"encoder": "nested_conformer", "input_size": 20, "normalize": None}
    layers = conf.get("num_blocks", CONF["num_blocks"])
    nested = {**FAMILY, "depths": [layers, 1], "scale": "learnt", "sample": 1}
    options = {**CONF, **conf, "nested": nested}
    espnet |= {"encoder_conf": options, "model_conf": {"ctc_weight": 1.0}}
    return Config(Path("family.yaml"), "family", Recipe(), espnet)


def built(config):
    return build_model(Experiment.of(config), 11)


def test_a_training_may_start_from_a_plain_model_of_its_sizes(tmp_path):
    small = config().espnet | {"encoder": "conformer", "encoder_conf": CONF}
    source = built(replace(config(), espnet=small))
    torch.save(source.state_dict(), tmp_path / "model.pth")
    refuse_other_start(built(config()), [Start(tmp_path / "model.pth")])
    with pytest.raises(UserError, match=r"is of another model: .*w_1.* has shape \(24,"):
        other = config(linear_units=32)
        other.espnet["encoder_conf"]["nested"] |= {"widths": [32]}
        refuse_other_start(built(other), [Start(tmp_path / "model.pth")])
    with pytest.raises(UserError, match="it lacks encoder"):
        refuse_other_start(built(config(num_blocks=4)), [Start(tmp_path / "model.pth")])
