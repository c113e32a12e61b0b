"""Mimicking networks: the equations by hand, padding, the paper's sizes, stacks cut short."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.load import build_stack
from espnet_ext.encoders.pretrained.mimicked import MimickedStack, mimic_activations, parse_mimic
from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import parameter_count
from espnet_ext.methods.mimic import (
    LinearMimic,
    MimicNetwork,
    MimicOptions,
    TransformerMimic,
    masked_mse,
    mimic_loss,
)
from tests.fixtures.speech_models import TINY


def randomised(module):
    """Random weights, norms and biases too, so that nothing is equal by being 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def speech(*seconds):
    lengths = torch.tensor([round(16000 * s) for s in seconds])
    waves = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        waves[row, :length] = torch.randn(length) * 0.1
    return waves, lengths


# Layers ---------------------------------------------------------------------------------------


def test_a_linear_mimic_is_the_papers_equation():
    mimic = randomised(LinearMimic(6, 4))
    x = torch.randn(2, 5, 6)
    inner = x @ mimic.linear1.weight.T + mimic.linear1.bias
    deviation = (inner - inner.mean(-1, keepdim=True)) / torch.sqrt(
        inner.var(-1, correction=0, keepdim=True) + 1e-5
    )
    normed = deviation * mimic.norm.weight + mimic.norm.bias
    expected = normed.clamp(min=0) @ mimic.linear2.weight.T + mimic.linear2.bias
    torch.testing.assert_close(mimic(x, torch.tensor([5, 5])), expected)
    assert parameter_count([mimic]) == 2 * 6 * 4 + 4 + 6 + 2 * 4


def test_a_transformer_mimic_is_torchs_post_norm_layer():
    size, width, heads = 16, 12, 8
    theirs = nn.TransformerEncoderLayer(
        size, heads, width, activation="relu", batch_first=True, norm_first=False
    )
    randomised(theirs)
    ours = TransformerMimic(size, width, heads).eval()
    weights = theirs.self_attn.in_proj_weight.chunk(3)
    biases = theirs.self_attn.in_proj_bias.chunk(3)
    with torch.no_grad():
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            layer = getattr(ours, f"linear_{name}")
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ours.linear_out.load_state_dict(theirs.self_attn.out_proj.state_dict())
        for name in ("linear1", "linear2", "norm1", "norm2"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    assert parameter_count([ours]) == parameter_count([theirs])
    x, lengths = torch.randn(3, 7, size), torch.tensor([7, 4, 1])
    hidden = torch.arange(7) >= lengths.unsqueeze(1)
    expected = theirs(x, src_key_padding_mask=hidden)
    found = ours(x, lengths)
    torch.testing.assert_close(found[~hidden], expected[~hidden], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_padding_changes_nothing(kind):
    network = randomised(MimicNetwork(16, 4, MimicOptions(kind=kind, width=8, split=2)))
    x = torch.randn(2, 9, 16)
    x[1, 5:] = 100.0
    both = network(x, torch.tensor([9, 5]))
    alone = network(x[1:, :5], torch.tensor([5]))
    assert len(both) == len(alone) == 2
    for batch, single in zip(both, alone, strict=True):
        torch.testing.assert_close(batch[1, :5], single[0], atol=1e-6, rtol=1e-5)


def test_two_mimics_share_nothing_and_follow_each_other():
    network = randomised(MimicNetwork(6, 4, MimicOptions(width=3, split=2)))
    parameters = [id(p) for part in network.parts for p in part.parameters()]
    assert len(parameters) == len(set(parameters)) == 12
    x, lengths = torch.randn(1, 3, 6), torch.tensor([3])
    first, last = network(x, lengths)
    torch.testing.assert_close(last, network.parts[1](first, lengths))
    torch.testing.assert_close(first, network.parts[0](x, lengths))


def test_the_loss_sees_the_frames_of_the_utterances_only():
    found, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    lengths = torch.tensor([4, 2])
    rows = torch.cat([(found - target)[0], (found - target)[1, :2]])
    expected = rows.pow(2).mean()
    torch.testing.assert_close(masked_mse(found, target, lengths), expected)
    torch.testing.assert_close(
        mimic_loss([found, found], [target, found], lengths), expected
    )  # equal weights; the second error is none


# The paper's sizes (arXiv 2409.16302) ---------------------------------------------------------

BASE = {"conv_dim": [512] * 7}
LARGE = BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
WHOLE = {"base": 94_577_571, "large": 315_700_387}


def on_meta(size):
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    conf = BASE if size == "base" else LARGE
    # The paper's counts have the large model with the base model's convolutions.
    conf = {k: v for k, v in conf.items() if k not in ("feat_extract_norm", "conv_bias")}
    with torch.device("meta"):
        return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=35, **conf))


@pytest.mark.parametrize(
    ("kind", "split", "width", "base", "large"),
    [
        ("linear", None, 64, (4.90, 94.8), (5.13, 98.4)),
        ("linear", 6, 512, (6.38, 93.3), (7.10, 97.8)),
        ("transformer", None, 512, (7.95, 91.6), (10.25, 96.8)),
    ],
)
def test_networks_have_the_sizes_of_the_paper(kind, split, width, base, large):
    from espnet_ext.encoders.pretrained.wav2vec2 import Wav2Vec2Stack

    for size, (millions, percent) in (("base", base), ("large", large)):
        whole = on_meta(size)
        assert parameter_count([whole]) == WHOLE[size]
        stack = Wav2Vec2Stack(whole.wav2vec2, "wav2vec2", True)
        before = parameter_count([stack.model.encoder])
        with torch.device("meta"):
            mimicked = MimickedStack(stack, MimicOptions(kind=kind, split=split, width=width))
        after = parameter_count([mimicked, whole.projector, whole.classifier])
        assert round(after / 1e6, 2) == millions
        assert round(100 * (1 - after / WHOLE[size]), 1) == percent
        # The replaced part alone.
        assert parameter_count([mimicked.mimic]) < 0.11 * before


# Stacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", TINY)
def test_a_mimicked_stack_sees_what_the_whole_one_sees(family, first):
    stack = randomised(build_stack(TINY[family]))
    waves, lengths = speech(0.5, 0.3)
    with torch.no_grad():
        (x, target), frames = mimic_activations(stack, waves, lengths, first, (3,))
        expected = stack(waves, lengths)[0]
        mimicked = randomised_mimic(stack, first)
        start, sizes = mimicked.start(waves, lengths)
    assert torch.equal(sizes, frames)
    for row, size in enumerate(frames.tolist()):
        torch.testing.assert_close(target[row, :size], expected[row, :size])
        torch.testing.assert_close(start[row, :size], x[row, :size], atol=1e-5, rtol=1e-5)
    # The whole stack is as it was, the mimicked one lacks what was replaced.
    assert stack.num_layers == 3
    kept = parameter_count([mimicked.stack])
    alone = taps_parameters(stack, first)
    assert kept == alone


def randomised_mimic(stack, first):
    mimicked = MimickedStack(stack, MimicOptions(width=4, first=first, heads=2))
    randomised(mimicked.mimic)
    return mimicked.eval()


def taps_parameters(stack, first):
    """Parameters that have a gradient from what the mimic sees: those that it needs."""
    waves, lengths = speech(0.4)
    for parameter in stack.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    (x, *_), _ = mimic_activations(stack, waves, lengths, first, (3,))
    (x * torch.randn_like(x)).sum().backward()
    return sum(p.numel() for p in stack.parameters() if p.grad is not None)


def test_an_encoder_with_a_mimic_takes_what_step_one_made(tmp_path):
    conf = {"architecture": TINY["whisper"], "frozen": True}
    whole = StackEncoder(1, **conf)
    mimic = MimicNetwork(16, 3, MimicOptions(width=5))
    randomised(mimic)
    path = tmp_path / "mimic.safetensors"
    save_file(mimic.state_dict(), path)
    options = {"width": 5, "path": str(path)}
    trained = StackEncoder(1, mimic=options, **conf)
    waves, lengths = speech(0.3, 0.2)
    x, frames = trained.stack.stack.front(waves, lengths)
    found, sizes, _ = trained(waves.unsqueeze(-1), lengths)
    assert torch.equal(sizes, frames)
    torch.testing.assert_close(found, mimic(x, frames)[-1])
    assert found.requires_grad  # the mimic is trained, the front end not
    assert {n.split(".")[1] for n, p in trained.named_parameters() if p.requires_grad} == {"mimic"}
    frozen = StackEncoder(1, mimic=options | {"frozen": True}, **conf)
    assert not any(p.requires_grad for p in frozen.parameters())
    every = StackEncoder(1, mimic=options, architecture=TINY["whisper"], frozen=False)
    assert all(p.requires_grad for p in every.parameters())
    assert parameter_count([trained.stack_only]) == parameter_count([mimic])
    assert parameter_count([whole.stack_only]) > parameter_count([whole.encoders])
    other = {"width": 6, "path": str(path)}
    with pytest.raises(UserError, match="of another architecture"):
        StackEncoder(1, mimic=other, **conf)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged"):
        StackEncoder(1, mimic=options, **conf)
    path.unlink()
    with pytest.raises(UserError, match=r"no mimic .* run espnet-ext mimic"):
        StackEncoder(1, mimic=options, **conf)


def test_a_frozen_front_runs_without_dropout_while_the_mimic_trains():
    conf = TINY["whisper"] | {"dropout": 0.5}
    encoder = StackEncoder(
        1, architecture=conf, mimic={"kind": "transformer", "first": 1, "heads": 2, "width": 4}
    )
    encoder.train()
    waves, lengths = speech(0.3)
    first, second = (encoder(waves.unsqueeze(-1), lengths)[0] for _ in range(2))
    assert not torch.equal(first, second)  # the mimic's own dropout
    encoder.stack.mimic.requires_grad_(False)
    third, fourth = (encoder(waves.unsqueeze(-1), lengths)[0] for _ in range(2))
    assert torch.equal(third, fourth)


def test_with_a_frozen_front_the_layers_learn():
    encoder = StackEncoder(1, architecture=TINY["wav2vec2"], frozen="front").train()
    waves, lengths = speech(0.3)
    encoder(waves.unsqueeze(-1), lengths)[0].sum().backward()
    learns = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert learns
    assert all(".encoder." in name for name in learns)
    assert encoder.stack.model.encoder.training
    assert not encoder.stack.model.feature_extractor.training
    with pytest.raises(UserError, match="true, false or front, not 'back'"):
        StackEncoder(1, architecture=TINY["wav2vec2"], frozen="back")


def test_the_conf_of_a_deployed_encoder_builds_it_without_files():
    conf = {"architecture": TINY["wavlm"], "remove": [1], "mimic": {"width": 4, "path": None}}
    encoder = randomised(StackEncoder(1, **conf))
    again = StackEncoder(1, **encoder.portable_conf(conf))
    again.load_state_dict(encoder.state_dict())
    waves, lengths = speech(0.3)
    expected = encoder(waves.unsqueeze(-1), lengths)[0]
    torch.testing.assert_close(again.eval()(waves.unsqueeze(-1), lengths)[0], expected)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"kind": "linea"}, "did you mean 'linear'"),
        ({"wdth": 3}, "unknown option of mimic: 'wdth'; did you mean 'width'"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"width": True}, "width must be a whole number"),
        ({"first": 3}, "keeps all of the 3 layers; choose 0 to 2"),
        ({"split": 3}, "layer 3 is not inside the replaced range"),
        ({"split": 0}, "choose from: 1 to 2"),
        ({"first": 2, "split": 2}, "choose from: none"),
        ({"split": "2"}, "must be the number of a layer"),
        ({"kind": "transformer", "heads": 3}, "heads: 3 does not divide the width 16"),
        ({"dropout": 1}, "from 0 to below 1"),
        ({"frozen": "yes"}, "true or false"),
        ("linear", "expected options as keys and values"),
    ],
)
def test_options_that_do_not_fit(conf, message):
    stack = build_stack(TINY["whisper"])
    with pytest.raises(UserError, match=message):
        MimickedStack(stack, parse_mimic(conf))


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"model_type": "wav2vec"}, "did you mean 'wav2vec2'"),
        ({"model_type": "whisper", "d_modell": 3}, "did you mean 'd_model'"),
        ({"model_type": "whisper", "d_model": 7, "encoder_attention_heads": 2}, "can be built"),
    ],
)
def test_architectures_that_are_none(conf, message):
    with pytest.raises(UserError, match=message):
        build_stack(conf)


def test_an_encoder_needs_a_model():
    with pytest.raises(UserError, match="give the path of a model, or an architecture"):
        StackEncoder(1)
    with pytest.raises(UserError, match="upto, repeat have no meaning together with mimic"):
        StackEncoder(1, architecture=TINY["whisper"], upto=2, mimic={})


def test_masked_mse_matches_torch_without_padding():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(masked_mse(a, b, torch.tensor([3, 3])), F.mse_loss(a, b))
