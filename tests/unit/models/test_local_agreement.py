"""Streaming with a Whisper: chunks of the encoder, the first pass, and segments."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from espnet_ext.data import tokenizer
from espnet_ext.data.pauses import ends_in_pause
from espnet_ext.encoders.chunks import Geometry
from espnet_ext.encoders.pretrained.chunk_mask import chunk_mask, complete_frames, streaming_mode
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.errors import UserError
from espnet_ext.models.attention_search import attention_greedy
from espnet_ext.models.local_agreement import FirstPass, Heard
from espnet_ext.models.whisper_decoder import WhisperDecoder
from tests.fixtures import foundation

CHUNKS = {"chunk_ms": 160, "history_ms": 320}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return foundation.seeded(tmp_path_factory, 4)


@pytest.fixture
def model(folder):
    encoder = StackEncoder(1, path=str(folder), frozen=False, chunks=CHUNKS).eval()
    decoder = WhisperDecoder(foundation.COUNT, 32, path=str(folder)).eval()
    decoder.use_tokens(tokenizer.listed(*tokenizer.source_files(str(folder))))

    def encode(speech, lengths):
        return encoder(speech.unsqueeze(-1), lengths)[:2]

    return SimpleNamespace(encoder=encoder, decoder=decoder, encode=encode)


def speech(seconds, seed=0):
    """Noise that is loudest at once: the loudness of log-mel is that of the loudest moment."""
    samples = round(16000 * seconds)
    found = np.random.default_rng(seed).standard_normal(samples) * 0.1
    found[:400] *= 4
    return found.astype(np.float32)


def test_a_frame_attends_to_its_chunk_and_its_history():
    mask = chunk_mask(23, Geometry(4, 6, 0))
    for query in range(23):
        start = query // 4 * 4
        for key in range(23):
            assert bool(mask[query, key]) == (start - 6 <= key < start + 4)


@torch.no_grad()
def test_what_comes_later_does_not_change_complete_frames(model):
    wave = torch.from_numpy(speech(2.0)).unsqueeze(0)
    whole, frames = model.encode(wave, torch.tensor([32000]))
    assert int(frames) == 100
    seen = set()
    for samples in (2759, 2760, 5319, 5320, 9000, 20001, 31999):
        ready = complete_frames(samples, model.encoder.base.chunks.geometry)
        seen.add(ready)
        part, _ = model.encode(wave[:, :samples], torch.tensor([samples]))
        torch.testing.assert_close(part[:, :ready], whole[:, :ready], atol=1e-5, rtol=1e-4)
        if ready + 8 < part.shape[1]:  # the last frames do change
            assert (part[:, -1] - whole[:, part.shape[1] - 1]).abs().max() > 1e-4
    assert seen == {0, 8, 16, 24, 56, 96}


@torch.no_grad()
def test_an_utterance_in_a_batch_is_as_alone(model):
    waves = [torch.from_numpy(speech(s, 3)) for s in (1.0, 0.5)]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    batch, frames = model.encode(padded, torch.tensor([16000, 8000]))
    alone, _ = model.encode(waves[1].unsqueeze(0), torch.tensor([8000]))
    torch.testing.assert_close(batch[1, : int(frames[1])], alone[0], atol=1e-5, rtol=1e-4)
    assert torch.isfinite(batch).all()


def test_a_search_goes_on_from_known_tokens(model):
    wave = torch.from_numpy(speech(1.5, 5)).unsqueeze(0)
    encoded, frames = model.encode(wave, torch.tensor([24000]))
    (whole,) = attention_greedy(model.decoder, encoded, frames, [9])
    assert len(whole) > 3
    for known in (whole[:1], whole[:3]):
        assert attention_greedy(model.decoder, encoded, frames, [9], known) == [whole]
    (other,) = attention_greedy(model.decoder, encoded, frames, [9], [75, 76])
    assert other[:2] == [75, 76]


def test_tokens_on_which_two_searches_agree_are_certain(model):
    first, wave = FirstPass(model, 6.0), speech(2.0, 6)
    heard, before = Heard(), ()
    for samples in range(2560, 32000, 2560):
        new = first.advance(wave[:samples], heard)
        if new is heard:
            continue
        assert new.tokens[: heard.certain] == heard.tokens[: heard.certain]
        assert new.certain >= heard.certain
        assert new.tokens[: new.certain] == before[: new.certain]
        # Independently: a search over the complete frames from what was certain.
        encoded, _ = model.encode(torch.from_numpy(wave[:samples])[None], torch.tensor([samples]))
        cut = encoded[:, : new.frames]
        most = model.decoder.most_tokens(new.frames / 50, 6.0)
        known = list(heard.tokens[: heard.certain])
        wanted = attention_greedy(model.decoder, cut, torch.tensor([new.frames]), [most], known)
        assert list(new.tokens) == wanted[0]
        heard, before = new, new.tokens
    assert heard.frames >= 80
    assert first.text(wave, 16000)[: heard.certain] == heard.tokens[: heard.certain]


@pytest.mark.parametrize(
    ("seconds", "quiet", "pause"),
    [(2.0, 0.7, True), (2.0, 0.3, False), (0.8, 0.7, False), (2.0, 0.0, False)],
)
def test_a_pause_ends_a_segment(seconds, quiet, pause):
    wave = np.concatenate([speech(seconds), 1e-4 * speech(quiet)])
    assert ends_in_pause(wave, 16000) is pause


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ({"chunk": 160}, "chunks: unknown option 'chunk'; did you mean 'chunk_ms'"),
        ({"history_ms": 400}, "chunks needs chunk_ms"),
        ({"chunk_ms": 170}, "chunks: chunk_ms 170 is no multiple of 20 ms .* choose 160"),
        ({"chunk_ms": 160, "whole": 1}, "chunks: whole must be from 0 to below 1, not 1"),
        ({"chunk_ms": 0}, "chunk_ms must be a number of milliseconds"),
    ],
)
def test_chunks_that_do_not_fit_are_one_line(folder, chunks, message):
    with pytest.raises(UserError, match=message) as error:
        StackEncoder(1, path=str(folder), frozen=False, chunks=chunks)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_one_model_attends_in_chunks_or_to_everything(folder, model):
    """With ``whole`` a batch of a training does one or the other, the second pass the latter."""
    both = StackEncoder(1, path=str(folder), frozen=False, chunks={**CHUNKS, "whole": 0.5})
    plain = StackEncoder(1, path=str(folder), frozen=False).eval()
    wave, samples = torch.from_numpy(speech(1.0))[None, :, None], torch.tensor([16000])
    in_chunks, everywhere = (e(wave, samples)[0] for e in (model.encoder, plain))
    assert (in_chunks - everywhere).abs().max() > 1e-3
    torch.manual_seed(1)
    for layer in both.base.modules():  # no dropout, but training
        layer.training = layer is both.base
    drawn = [both(wave, samples)[0] for _ in range(12)]
    chunked = [torch.allclose(one, in_chunks, atol=1e-5) for one in drawn]
    whole = [torch.allclose(one, everywhere, atol=1e-5) for one in drawn]
    assert chunked == [not one for one in whole] and 2 < sum(whole) < 10
    both.eval()
    torch.testing.assert_close(both(wave, samples)[0], everywhere)
    with streaming_mode(both.base.chunks):
        torch.testing.assert_close(both(wave, samples)[0], in_chunks)


def test_a_model_without_chunks_cannot_stream(folder, model):
    model.encoder.base.chunks = None
    with pytest.raises(UserError, match="this model cannot stream"):
        FirstPass(model, 6.0)
