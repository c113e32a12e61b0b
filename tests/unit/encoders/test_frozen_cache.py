"""What frozen parts give is computed once in a training, and is what they give."""

import pytest
import torch

from espnet_ext.encoders import frozen_cache
from espnet_ext.encoders.frozen_cache import Memory, remembering
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.errors import UserError
from tests.fixtures.speech_models import TINY, randomise, speech


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """An empty memory for each test."""
    monkeypatch.setattr(frozen_cache, "_memory", Memory())
    return frozen_cache._memory


def count_calls(encoder, monkeypatch):
    """The sizes of the batches that the front end gets from now on."""
    plain, sizes = encoder._below.front, []

    def front(x, lengths):
        sizes.append(len(x))
        return plain(x, lengths)

    monkeypatch.setattr(encoder._below, "front", front)
    return sizes


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("conf", [{}, {"mimic": {"width": 4, "first": 1}}, {"frozen": "front"}])
def test_remembered_is_computed_once_and_equals_the_batch(family, conf, monkeypatch):
    encoder = randomise(StackEncoder(1, architecture=TINY[family], cache_gb=1, **conf)).eval()
    waves, lengths = speech(4800, 3300)
    waves = waves.unsqueeze(-1)
    expected, frames, _ = encoder(waves, lengths)
    sizes = count_calls(encoder, monkeypatch)
    with remembering():
        for _ in range(2):
            found, found_frames, _ = encoder(waves, lengths)
            assert torch.equal(found_frames, frames)
            for one, other, n in zip(found, expected, frames.tolist(), strict=True):
                torch.testing.assert_close(one[:n], other[:n], atol=1e-5, rtol=1e-5)
        alone = encoder(waves[1:, : int(lengths[1])], lengths[1:])[0]  # known from the batch
        torch.testing.assert_close(alone[0], expected[1, : int(frames[1])], atol=1e-5, rtol=1e-5)
    assert sizes == [1, 1]
    encoder(waves, lengths)  # not a training any more
    assert sizes == [1, 1, 2]


def test_what_was_learnt_gets_its_gradient_from_what_is_remembered():
    conf = {"architecture": TINY["whisper"], "mimic": {"width": 4}, "cache_gb": 1}
    encoder = StackEncoder(1, **conf)
    waves, lengths = speech(4800)
    gradients = []
    for _ in range(2):
        encoder.zero_grad()
        with remembering():
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
    with remembering():
        found = [encoder(waves.unsqueeze(-1), lengths)[0] for encoder in encoders]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def double(x, lengths):
    return 2 * x.unsqueeze(-1), lengths


def test_memory_stays_within_its_limit_and_forgets_other_parts_first(memory):
    speech = torch.arange(12.0).view(3, 4)
    lengths = torch.tensor([4, 4, 2])
    room = 8 * 4 / 1e9  # two utterances of four frames
    for name in ("a", "b"):
        found, frames = memory(name, double, speech, lengths, room)
        assert torch.equal(found[:2, :, 0], 2 * speech[:2])
        assert found[2, :, 0].tolist() == [16, 18, 0, 0]
        assert frames.tolist() == [4, 4, 2]
        assert list(memory.parts) == [name]
        assert len(memory.parts[name]) == 2
        assert memory.size == 32
        assert sum(kept.untyped_storage().nbytes() for kept in memory.parts[name].values()) == 32


def test_a_cache_of_a_negative_size_is_refused():
    with pytest.raises(UserError, match="cache_gb must be 0 or more, not -1"):
        StackEncoder(1, architecture=TINY["whisper"], cache_gb=-1)
