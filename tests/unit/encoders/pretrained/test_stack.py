"""A stack gives what transformers (or ESPnet) gives, loses layers, and is loaded by them again."""

import copy

import pytest
import torch
import yaml

from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from tests.fixtures import speech_models as models

NEAR = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=models.SAMPLES, ids=lambda p: f"{p[0]}-{'large' if p[1] else 'base'}")
def case(request, tmp_path):
    family, large = request.param
    model = models.make(tmp_path / "model", family, large)
    return load_stack(tmp_path / "model"), model, large


def reference(model, large, waves, lengths=None):
    """Transformers' outputs of all layers; the last as the model gives it, with its norm."""
    mask = None
    if lengths is not None:
        mask = (torch.arange(waves.shape[1]) < lengths.unsqueeze(1)).long()
    with torch.no_grad():
        found = model(waves, attention_mask=mask, output_hidden_states=True)
    assert len(found.hidden_states) == models.LAYERS + 1
    return [*found.hidden_states[1:-1], found.last_hidden_state]


@torch.no_grad()
def test_layers_are_those_of_transformers(case):
    stack, model, large = case
    waves, lengths = models.speech(1600)
    x, frames = stack.front(waves, lengths)
    outputs = stack.hidden(x, frames)
    expected = reference(model, large, waves)
    assert [len(outputs), *x.shape] == [stack.num_layers, 1, int(frames), stack.width]
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, **NEAR)
        assert wanted.std() > 0.1
    torch.testing.assert_close(stack(waves, lengths)[0], expected[-1], **NEAR)


@torch.no_grad()
def test_in_a_batch_with_padding(case):
    stack, model, large = case
    waves, lengths = models.speech(1600, 1003, 640)
    waves[1, 1003:] = 7.0  # whatever the padding holds
    x, frames = stack.front(waves, lengths)
    outputs = stack.hidden(x, frames)
    for index, size in enumerate(lengths.tolist()):
        alone = reference(model, large, waves[index : index + 1, :size])
        assert int(frames[index]) == alone[0].shape[1]
        for found, wanted in zip(outputs, alone, strict=True):
            torch.testing.assert_close(found[index, : frames[index]], wanted[0], **NEAR)
    if large:  # with group normalisation transformers' batches are not its single utterances
        waves[1, 1003:] = 0.0
        together = reference(model, large, waves, lengths)
        for found, wanted in zip(outputs, together, strict=True):
            for index, size in enumerate(frames.tolist()):
                torch.testing.assert_close(found[index, :size], wanted[index, :size], **NEAR)


@torch.no_grad()
def test_a_part_of_the_layers(case):
    stack, _, _ = case
    x, frames = stack.front(*models.speech(1600, 900))
    whole = stack.hidden(x, frames)
    some = stack.hidden(x, frames, upto=2)
    assert len(some) == 2
    torch.testing.assert_close(some[1], whole[1], atol=0, rtol=0)
    rest = stack.run(some[1], frames, start=2)
    torch.testing.assert_close(rest[-1], whole[-1], **NEAR)


@torch.no_grad()
def test_without_layers_transformers_loads_it(case, tmp_path):
    stack, model, _ = case
    before = copy.deepcopy(stack.state_dict())
    smaller = stack.remove([1, 3]).remove([2] if stack.family != "wavlm" else [])
    assert smaller.kept == ((0,) if stack.family != "wavlm" else (0, 2))
    assert stack.kept == (0, 1, 2, 3)
    assert stack.num_layers == stack.model.config.num_hidden_layers == len(stack.layers) == 4
    assert smaller.layers[0].final_layer_norm.weight is stack.layers[0].final_layer_norm.weight
    smaller.save(tmp_path / "smaller")
    plain = type(model).from_pretrained(tmp_path / "smaller").eval()
    waves, lengths = models.speech(1600)
    found = plain(waves).last_hidden_state
    torch.testing.assert_close(found, smaller(waves, lengths)[0], **NEAR)
    torch.testing.assert_close(load_stack(tmp_path / "smaller")(waves, lengths)[0], found, **NEAR)
    assert (found - stack(waves, lengths)[0]).abs().max() > 0.1
    after = stack.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.no_grad()
@pytest.mark.parametrize(("family", "large"), models.ALL)
def test_a_saved_stack_opens_in_transformers_as_it_is(family, large, tmp_path):
    import transformers

    models.make(tmp_path / "model", family, large)
    stack = load_stack(tmp_path / "model")
    stack.remove([1]).save(tmp_path / "whisper_smaller")
    model, found = transformers.AutoModel.from_pretrained(
        tmp_path / "whisper_smaller", output_loading_info=True
    )
    if family == "whisper":
        assert not any(weight.any() for weight in model.decoder.parameters())
        model = model.encoder
    assert set(found["missing_keys"]) <= {"masked_spec_embed"} and not found["unexpected_keys"]
    assert model.config.num_hidden_layers == len(stack.layers) - 1
    again = load_stack(tmp_path / "whisper_smaller")
    again.save(tmp_path / "twice")
    for name, tensor in load_stack(tmp_path / "twice").model.state_dict().items():
        assert "masked_spec_embed" in name or torch.equal(tensor, model.state_dict()[name])


@torch.no_grad()
def test_normalised_speech(tmp_path):
    import transformers

    model = models.make(tmp_path, "wav2vec2", large=True, normalise=True)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    waves, lengths = models.speech(1600)
    waves = 3 * waves + 0.4
    ready = extractor(waves[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    stack = load_stack(tmp_path)
    found = stack(waves, lengths)[0]
    torch.testing.assert_close(found, model(ready).last_hidden_state, **NEAR)
    assert (found - model(waves).last_hidden_state).abs().max() > 0.1
    stack.save(tmp_path / "again")
    assert load_stack(tmp_path / "again").normalise


# -- Whisper


@pytest.fixture
def whisper(tmp_path):
    model = models.make(tmp_path / "whole", "whisper")
    model.encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path, model.encoder


@torch.no_grad()
@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_whisper_at_full_length(whisper, part):
    import transformers

    folder, encoder = whisper
    stack = load_stack(folder / part)
    waves, lengths = models.speech(480000)
    mel = transformers.WhisperFeatureExtractor()(
        waves[0].numpy(), sampling_rate=16000, return_tensors="pt"
    ).input_features
    expected = encoder(mel, output_hidden_states=True)
    outputs = stack.hidden(*stack.front(waves, lengths))
    wanted = [*expected.hidden_states[1:-1], expected.last_hidden_state]
    for found, one in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(found, one, **NEAR)


@torch.no_grad()
def test_short_whisper_is_not_padded_and_a_batch_changes_nothing(whisper):
    folder, encoder = whisper
    stack = load_stack(folder / "encoder")
    waves, lengths = models.speech(16000, 9001, 400)
    waves[1, 9001:] = 5.0
    x, frames = stack.front(waves, lengths)
    assert frames.tolist() == [50, 28, 1]
    outputs = stack.hidden(x, frames)
    for index, size in enumerate(lengths.tolist()):
        mel = stack.log_mel(waves[index, :size]).T.unsqueeze(0)
        # transformers' encoder refuses short input: its parts, in its order.
        h = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mel))))
        h = h.transpose(1, 2) + encoder.embed_positions.weight[: h.shape[2]]
        for place, layer in enumerate(encoder.layers):
            h = layer(h, None)
            wanted = encoder.layer_norm(h) if place == models.LAYERS - 1 else h
            found = outputs[place][index, : frames[index]]
            torch.testing.assert_close(found, wanted[0], **NEAR)


@torch.no_grad()
def test_whisper_without_layers(whisper, tmp_path):
    from transformers import AutoModel

    folder, _ = whisper
    stack = load_stack(folder / "whole")
    smaller = stack.remove([0, 2])
    smaller.save(tmp_path / "smaller")
    plain = AutoModel.from_pretrained(tmp_path / "smaller").eval().encoder
    assert len(plain.layers) == 2
    waves, lengths = models.speech(480000)
    mel = smaller.log_mel(waves[0]).T.unsqueeze(0)
    found = plain(mel).last_hidden_state
    torch.testing.assert_close(found, smaller(waves, lengths)[0], **NEAR)
    assert (found - stack(waves, lengths)[0]).abs().max() > 0.1


# -- ESPnet's encoders

CONFORMER = {
    "linear_units": 24,
    "cnn_module_kernel": 7,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "pos_enc_layer_type": "rel_pos",
    "selfattention_layer_type": "rel_selfattn",
    "interctc_layer_idx": [1],
}
CGMLP = {
    "cgmlp_linear_units": 32,
    "cgmlp_conv_kernel": 7,
    "rel_pos_type": "latest",
    "pos_enc_layer_type": "rel_pos",
    "attention_layer_type": "rel_selfattn",
    "cgmlp_weight": [0.2, 0.5, 0.8],
}
ENCODERS = {
    "conformer": CONFORMER,
    "transformer": {"linear_units": 24, "input_layer": "linear"},
    "branchformer": CGMLP,
    "e_branchformer": {k: v for k, v in CGMLP.items() if k != "cgmlp_weight"},
}


def espnet_model(folder, encoder, conf):
    """Write a deployed CTC recogniser with a random encoder of three layers; return it."""
    import numpy as np

    from espnet_ext.bridge.checkpoint import build, save
    from espnet_ext.bridge.registry import TASKS

    arguments = dict(TASKS["asr"].get_default_config())
    arguments |= {
        "encoder": encoder,
        "encoder_conf": {"output_size": 16, "attention_heads": 2, "num_blocks": 3, **conf},
        "token_list": ["<blank>", "<unk>", "a", "<sos/eos>"],
        "input_size": 40,
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")},
        "model_conf": {"ctc_weight": 1.0},
        "decoder": None,
        "init": None,
    }
    folder.mkdir(parents=True)
    sums = np.linspace(1, 2, 40).astype(np.float32)
    np.savez(folder / "feats_stats.npz", count=1, sum=sums, sum_square=sums * sums + 4)
    model = build(arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
    save(model.state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(arguments))
    return model


def espnet_features(waves, lengths):
    from espnet_ext.data.fbank import kaldi_fbank

    feats = [kaldi_fbank(w[:n], 16000, 40) for w, n in zip(waves, lengths.tolist(), strict=True)]
    sizes = torch.tensor([len(one) for one in feats])
    return torch.nn.utils.rnn.pad_sequence(feats, batch_first=True), sizes


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_encoders_of_espnet(tmp_path, encoder):
    from espnet_ext.bridge.checkpoint import load_model

    folder = tmp_path / "exp/tag/deploy/merged"
    model = espnet_model(folder, encoder, ENCODERS[encoder])
    stack = load_stack(tmp_path / "exp/tag")
    assert (stack.family, stack.num_layers, stack.width) == (encoder, 3, 16)
    waves, lengths = models.speech(12000, 9000)

    def of_espnet(one):
        found, frames = one.encode(*espnet_features(waves, lengths))
        return found[0] if isinstance(found, tuple) else found, frames

    found, frames = stack(waves, lengths)
    expected, sizes = of_espnet(model)
    torch.testing.assert_close(found, expected, **NEAR)
    assert frames.tolist() == sizes.tolist()
    assert expected.std() > 0.1
    x, frames = stack.front(waves, lengths)
    second = stack.hidden(x, frames, upto=2)[-1]
    torch.testing.assert_close(stack.run(second, frames, start=2)[-1], expected, **NEAR)
    smaller = stack.remove([1])
    smaller.save(tmp_path / "smaller")
    again = load_model(tmp_path / "smaller/config.yaml", tmp_path / "smaller/model.pth")
    assert len(again.encoder.encoders) == 2
    torch.testing.assert_close(of_espnet(again)[0], smaller(waves, lengths)[0], **NEAR)
    torch.testing.assert_close(
        load_stack(tmp_path / "smaller")(waves, lengths)[0], smaller(waves, lengths)[0], **NEAR
    )
    assert (smaller(waves, lengths)[0] - found).abs().max() > 0.05
    assert torch.equal(stack(waves, lengths)[0], found)
    assert torch.equal(again.ctc.ctc_lo.weight, model.ctc.ctc_lo.weight)


def test_encoder_without_equal_layers_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("encoder: speechformer\n")
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(UserError, match="no stack of equal layers in encoder 'speechformer'"):
        load_stack(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_weight_normalisation_is_no_method(tmp_path, family):
    """The positional convolution is parametrized by torch itself and deployed as it is."""
    from espnet_ext.methods.deploy import deploy, variants

    models.make(tmp_path, family)
    stack = load_stack(tmp_path)
    assert variants(stack) == ("plain", "merged")
    deployed = deploy(stack)
    waves, lengths = models.speech(1600)
    assert torch.equal(deployed(waves, lengths)[0], stack(waves, lengths)[0])
    assert deployed.state_dict().keys() == stack.state_dict().keys()


def test_whisper_runs_under_autocast(tmp_path):
    """With cpu_dtype: bfloat16 the forward pass is autocast; the log-mel stays float32."""
    models.make(tmp_path, "whisper")
    stack = load_stack(tmp_path)
    waves, lengths = models.speech(6000, 4100)
    expected = stack.log_mel(waves[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stack.log_mel(waves[0]), expected)
        found, frames = stack(waves, lengths)
    plain, plain_frames = stack(waves, lengths)
    assert torch.equal(frames, plain_frames)
    assert 0 < (found.float() - plain).abs().max() < 0.2 * plain.abs().max()
