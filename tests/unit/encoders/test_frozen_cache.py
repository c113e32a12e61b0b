"""Outputs of frozen parts are computed once in a training, and equal those without a cache."""

import pytest
import torch

from espnet_ext.encoders.frozen_cache import FrozenCache
from espnet_ext.encoders.pretrained.encoder import StackEncoder, caching
from espnet_ext.errors import UserError
from tests.fixtures.speech_models import TINY, randomise, speech


def count_calls(encoder, monkeypatch):
    """The sizes of the batches that the front end gets from now on."""
    plain, sizes = encoder.base.front, []

    def front(x, lengths):
        sizes.append(len(x))
        return plain(x, lengths)

    monkeypatch.setattr(encoder.base, "front", front)
    return sizes


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("conf", [{}, {"mimic": {"width": 4, "first": 1}}, {"frozen": "front"}])
def test_cached_is_computed_once_and_equals_the_batch(family, conf, monkeypatch):
    encoder = randomise(StackEncoder(1, architecture=TINY[family], cache_gb=1, **conf)).eval()
    waves, lengths = speech(4800, 3300)
    waves = waves.unsqueeze(-1)
    expected, frames, _ = encoder(waves, lengths)
    sizes = count_calls(encoder, monkeypatch)
    with caching(encoder, FrozenCache()):
        for _ in range(2):
            found, found_frames, _ = encoder(waves, lengths)
            assert torch.equal(found_frames, frames)
            for one, other, n in zip(found, expected, frames.tolist(), strict=True):
                torch.testing.assert_close(one[:n], other[:n], atol=1e-5, rtol=1e-5)
        alone = encoder(waves[1:, : int(lengths[1])], lengths[1:])[0]  # known from the batch
        torch.testing.assert_close(alone[0], expected[1, : int(frames[1])], atol=1e-5, rtol=1e-5)
    assert sizes == [1, 1]
    encoder(waves, lengths)  # the training is over
    assert sizes == [1, 1, 2]


def test_a_cache_serves_the_next_training_of_the_process(monkeypatch):
    """Another encoder with the same frozen part, as in the next cell of a grid."""
    waves, lengths = speech(4800)
    cache, outputs = FrozenCache(), []
    for expected in ([1], []):
        torch.manual_seed(0)
        encoder = StackEncoder(1, architecture=TINY["whisper"], cache_gb=1).eval()
        sizes = count_calls(encoder, monkeypatch)
        with caching(encoder, cache):
            outputs.append(encoder(waves.unsqueeze(-1), lengths)[0])
        assert sizes == expected
        assert encoder.cache is None
    assert torch.equal(*outputs)


def test_without_cache_gb_nothing_is_cached():
    encoder = StackEncoder(1, architecture=TINY["whisper"]).eval()
    cache = FrozenCache()
    waves, lengths = speech(4800)
    with caching(encoder, cache):
        encoder(waves.unsqueeze(-1), lengths)
    assert not cache.parts


def test_cached_outputs_give_the_mimic_its_gradient():
    conf = {"architecture": TINY["whisper"], "mimic": {"width": 4}, "cache_gb": 1}
    encoder = StackEncoder(1, **conf)
    waves, lengths = speech(4800)
    gradients = []
    cache = FrozenCache()
    for _ in range(2):
        encoder.zero_grad()
        with caching(encoder, cache):
            encoder(waves.unsqueeze(-1), lengths)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.stack.mimic.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_two_models_and_two_depths_are_not_taken_for_one_another():
    waves, lengths = speech(4800)
    encoders = [
        randomise(StackEncoder(1, architecture=TINY["whisper"], cache_gb=1, upto=upto))
        for _ in range(2)
        for upto in (1, 2)
    ]
    expected = [encoder(waves.unsqueeze(-1), lengths)[0] for encoder in encoders]
    with caching(torch.nn.ModuleList(encoders), FrozenCache()):
        found = [encoder(waves.unsqueeze(-1), lengths)[0] for encoder in encoders]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_two_models_that_differ_in_normalisation_only_are_kept_separate():
    waves, lengths = speech(4800)
    cache, outputs = FrozenCache(), []
    for normalise in (True, False):
        torch.manual_seed(0)
        architecture = {**TINY["wav2vec2"], "do_normalize": normalise}
        encoder = StackEncoder(1, architecture=architecture, cache_gb=1).eval()
        with caching(encoder, cache):
            outputs.append(encoder(waves.unsqueeze(-1), lengths)[0])
    assert not torch.allclose(*outputs)


def double(x, lengths):
    return 2 * x.unsqueeze(-1), lengths


def test_a_cache_stays_within_its_limit_and_drops_other_parts_first():
    cache = FrozenCache()
    speech = torch.arange(12.0).view(3, 4)
    lengths = torch.tensor([4, 4, 2])
    room = 8 * 4 / 1e9  # two utterances of four frames
    for name in ("a", "b"):
        found, frames = cache(name, double, speech, lengths, room)
        assert torch.equal(found[:2, :, 0], 2 * speech[:2])
        assert found[2, :, 0].tolist() == [16, 18, 0, 0]
        assert frames.tolist() == [4, 4, 2]
        assert list(cache.parts) == [name]
        assert len(cache.parts[name]) == 2
        assert cache.size == 32
        assert sum(kept.untyped_storage().nbytes() for kept in cache.parts[name].values()) == 32


def test_a_cache_of_a_negative_size_is_refused():
    with pytest.raises(UserError, match="cache_gb must be 0 or more, not -1"):
        StackEncoder(1, architecture=TINY["whisper"], cache_gb=-1)
