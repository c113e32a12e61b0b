"""The batched beam search finds what ESPnet's does, with scores that are those of its texts."""

import pytest
import torch
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch

from espnet_ext.data import tokenizer
from espnet_ext.models.attention_beam import attention_beam
from espnet_ext.models.attention_search import attention_greedy, loop
from espnet_ext.models.whisper_decoder import WhisperDecoder
from tests.fixtures import foundation

FRAMES = (40, 25, 33, 12)
MOST = [9, 6, 12, 4]


@pytest.fixture(scope="module", params=[5, 6])
def decoder(request, tmp_path_factory):
    """A decoder of random weights that says varied things, and ends."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(request.param)
    foundation.make(folder)
    tokens = tokenizer.listed(*tokenizer.source_files(str(folder)))
    found = WhisperDecoder(len(tokens), 32, path=str(folder)).eval()
    found.use_tokens(tokens)
    with torch.no_grad():
        found.decoder.embed_tokens.weight.mul_(3)
    return found


@pytest.fixture
def speech():
    torch.manual_seed(1)
    x = torch.randn(len(FRAMES), max(FRAMES), 32)
    for row, count in enumerate(FRAMES):
        x[row, count:] = 9.0  # whatever the padding holds
    return x, torch.tensor(FRAMES)


def log_probs(decoder, x, count, tokens):
    """(L + 1, V), of what follows each token of a text, all from the whole text at once."""
    text = torch.tensor([[decoder.prompt[0], *tokens]])
    scores, _ = decoder(x[:, :count], torch.tensor([count]), text, torch.tensor([text.shape[1]]))
    return scores[0].log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 5])
def test_it_finds_what_espnet_finds_in_one_utterance_after_another(
    decoder, speech, size, monkeypatch
):
    x, frames = speech
    found = attention_beam(decoder, x, frames, MOST, size)
    for row, (count, most) in enumerate(zip(FRAMES, MOST, strict=True)):
        monkeypatch.setattr(WhisperDecoder, "most_tokens", lambda *_, most=most: most)
        search = BatchBeamSearch(
            scorers={"decoder": decoder},
            weights={"decoder": 1.0},
            beam_size=size,
            vocab_size=decoder.decoder.config.vocab_size,
            sos=decoder.prompt[0],
            eos=decoder.end,
        )
        wanted = search(x[row, :count], maxlenratio=-(most + 2.0))
        ended = [one for one in wanted if not loop(one.yseq[1:-1].tolist())]
        assert found[row].tokens == ended[0].yseq[1:-1].tolist()
        assert found[row].whole == pytest.approx(float(ended[0].score), abs=1e-3)
    assert len({tuple(text.tokens) for text in found}) == len(FRAMES)


@torch.no_grad()
def test_scores_are_those_of_the_texts(decoder, speech):
    x, frames = speech
    for row, text in enumerate(attention_beam(decoder, x, frames, MOST, 4)):
        rows = log_probs(decoder, x[row : row + 1], FRAMES[row], text.tokens)
        found = [float(rows[i, token]) for i, token in enumerate([*text.tokens, decoder.end])]
        assert text.score == pytest.approx(sum(found[:-1]), abs=1e-3)
        assert text.whole == pytest.approx(sum(found), abs=1e-3)


@torch.no_grad()
def test_a_beam_of_one_is_greedy_and_a_wider_one_is_no_worse(decoder, speech):
    x, frames = speech
    greedy = attention_greedy(decoder, x, frames, MOST)
    one = attention_beam(decoder, x, frames, MOST, 1)
    wide = attention_beam(decoder, x, frames, MOST, 300)  # more than there are tokens
    assert [text.tokens for text in one] == greedy
    assert all(a.whole <= b.whole + 1e-4 for a, b in zip(one, wide, strict=True))
    assert any(a.tokens != b.tokens for a, b in zip(one, wide, strict=True))


@torch.no_grad()
def test_a_text_that_repeats_itself_ends_with_one_phrase(decoder, speech, monkeypatch):
    x, frames = speech
    step = WhisperDecoder.step

    def stuck(self, tokens, encoded, inside, past):
        scores, past = step(self, tokens, encoded, inside, past)
        scores[:, 70] = 1e3
        return scores, past

    monkeypatch.setattr(WhisperDecoder, "step", stuck)
    found = attention_beam(decoder, x, frames, [40] * len(FRAMES), 3)
    assert [text.tokens for text in found] == [[70]] * len(FRAMES)
