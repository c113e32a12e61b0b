"""Several outputs of a stack side by side are those of transformers' layers."""

import pytest
import torch

from espnet_ext.encoders.frozen_cache import FrozenCache
from espnet_ext.encoders.pretrained.encoder import StackEncoder, caching
from espnet_ext.errors import UserError
from espnet_ext.methods.mimic import MimicNetwork, MimicOptions
from tests.fixtures import speech_models as models

SIZES = models.TINY["wav2vec2"]


@torch.no_grad()
def encoded(encoder, waves, lengths):
    return encoder.eval()(waves.unsqueeze(-1), lengths)[0]


@pytest.mark.parametrize(("family", "large"), models.SAMPLES)
@pytest.mark.parametrize("outputs", [2, models.LAYERS + 1])
def test_the_last_outputs_are_those_of_transformers(family, large, outputs, tmp_path):
    model = models.make(tmp_path, family, large)
    waves, lengths = models.speech(1600)
    with torch.no_grad():
        found = model(waves, output_hidden_states=True)
    wanted = torch.cat([*found.hidden_states[-outputs:-1], found.last_hidden_state], dim=-1)
    encoder = StackEncoder(1, path=str(tmp_path), outputs=outputs)
    assert encoder.output_size() == wanted.shape[-1] == outputs * models.WIDTH
    torch.testing.assert_close(encoded(encoder, waves, lengths), wanted, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("split", [None, 2])
def test_a_mimic_is_the_last_output_and_reads_the_one_before(split, tmp_path):
    model = models.make(tmp_path, "wav2vec2", False)
    waves, lengths = models.speech(1600)
    layers = model(waves, output_hidden_states=True).hidden_states
    section = {"first": 1, "width": 5, **({"split": split} if split else {})}
    encoder = StackEncoder(1, path=str(tmp_path), mimic=section, outputs=3)
    mimic = MimicNetwork(models.WIDTH, models.LAYERS, MimicOptions(**section))
    models.randomise(mimic)
    encoder.mimic.load_state_dict(mimic.state_dict())
    mimicked = mimic(layers[1], torch.tensor([layers[1].shape[1]]))
    wanted = torch.cat([*layers[:2], *mimicked][-3:], dim=-1)
    torch.testing.assert_close(encoded(encoder, waves, lengths), wanted, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mimic", [None, {"first": 2, "width": 5}])
def test_what_an_export_computes_has_the_same_outputs(mimic, tmp_path):
    models.make(tmp_path, "wav2vec2", True)
    waves, lengths = models.speech(1600)
    encoder = StackEncoder(1, path=str(tmp_path), mimic=mimic, outputs=3)
    wanted = encoded(encoder, waves, lengths)
    found, frames = encoder.encode_features(waves.unsqueeze(-1), lengths)
    assert wanted.shape[1:] == (int(frames), 3 * models.WIDTH)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_outputs_of_frozen_layers_are_cached_by_their_number():
    waves, lengths = models.speech(16000)
    cache = FrozenCache()
    kinds = [
        *({"outputs": outputs} for outputs in (1, 3, 2)),
        # Two mimics leave less to be cached than one.
        {"outputs": 3, "mimic": {"width": 5, "first": 1, "split": 2}},
        {"outputs": 3, "mimic": {"width": 5, "first": 1}},
    ]
    for conf in kinds:
        torch.manual_seed(0)
        encoder = StackEncoder(1, architecture=SIZES, cache_gb=1, **conf)
        wanted = encoded(encoder, waves, lengths)
        with caching(encoder, cache):
            for _ in range(2):
                assert torch.equal(encoded(encoder, waves, lengths), wanted)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"outputs": 5}, "outputs: 5 is not in 1..4"),
        ({"outputs": 0}, "outputs: 0 is not in 1..4"),
        ({"outputs": True}, "outputs: True is not in 1..4"),
        ({"outputs": 3, "upto": 1}, "outputs: 3 is not in 1..2"),
        ({"outputs": 3, "mimic": {"width": 5}}, "outputs: 3 is not in 1..2"),
        ({"outputs": 2, "frozen": False, "nested": {"depths": [3, 2]}}, "together with nested"),
    ],
)
def test_what_has_no_such_outputs_is_refused(conf, message):
    with pytest.raises(UserError, match=message):
        StackEncoder(1, architecture=SIZES, **conf)
