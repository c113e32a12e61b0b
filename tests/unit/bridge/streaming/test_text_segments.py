"""Segments of a stream's text: together they are the whole, whatever the tokens."""

from itertools import pairwise

import numpy as np
import pytest

from tests.fixtures.streams import TOKENS, chunks, wave, whole


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer of sentencepiece and seven of its pieces, for the ids of the model."""
    import sentencepiece as spm
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

    prefix = tmp_path_factory.mktemp("bpe") / "bpe"
    lines = iter(["ab c abc", "c ab", "abc abc ab", "b a c"] * 5)
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), vocab_size=10, model_type="bpe"
    )
    tokenizer = SentencepiecesTokenizer(f"{prefix}.model")
    tokenizer.tokens2text([])
    assert {"\u2581", "\u2581a", "b", "c"} <= {tokenizer.sp.id_to_piece(i) for i in range(10)}
    return tokenizer, ["<blank>", "<unk>", "\u2581", "b", "\u2581a", "c", "<sos/eos>"]


def with_tokenizer(streamer, kind: str, pieces) -> None:
    """Let the model's ids be pieces of sentencepiece, or characters without blanks."""
    from espnet2.text.token_id_converter import TokenIDConverter

    if kind == "sentencepiece":
        streamer.decoder.inference.tokenizer, names = pieces
        streamer.decoder.inference.converter = TokenIDConverter(names)
    if kind == "unbroken":
        names = ["x" if name == "<space>" else name for name in TOKENS]
        streamer.decoder.inference.converter = TokenIDConverter(names)


@pytest.mark.parametrize("kind", ["characters", "unbroken", "sentencepiece"])
def test_segments_together_are_the_text_of_decoding_the_whole(streamer, kind, sentencepiece):
    from espnet_ext.bridge.streaming.latency import Timing
    from espnet_ext.bridge.streaming.text_segments import SEGMENT_TOKENS

    with_tokenizer(streamer, kind, sentencepiece)
    partial = list(streamer.run(chunks(streamer, 20.0), Timing()))
    segments = [p.text for p in partial if p.finished]
    assert "".join(segments) == whole(streamer, wave(20.0))
    assert len(segments) > 3
    if kind == "unbroken":
        assert {len(text) for text in segments[:-1]} == {SEGMENT_TOKENS}
    else:  # a segment begins with the blank before its first word, if there is one to end at
        assert any(text.startswith(" ") for text in segments[1:])
        assert all(b.startswith(" ") or " " not in a[1:] for a, b in pairwise(segments))
    assert max(len(p.text) for p in partial) < 2 * 2 * SEGMENT_TOKENS  # two characters a token


@pytest.mark.parametrize("kind", ["characters", "unbroken", "sentencepiece"])
def test_segments_of_any_tokens_are_their_text(streamer, kind, sentencepiece, monkeypatch):
    from espnet_ext.bridge.streaming import text_segments

    monkeypatch.setattr(text_segments, "SEGMENT_TOKENS", 5)
    with_tokenizer(streamer, kind, sentencepiece)
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):  # of blanks and beginnings of words
        rest = (1 - share) / 2
        tokens = random.choice([2, 3, 4, 5], 300, p=[share / 2, rest, share / 2, rest]).tolist()
        found, texts = text_segments.Segments(streamer.decoder), []
        for start in range(0, 300, 7):
            texts += found.add(tokens[start : start + 7])
            assert len(found.tokens) <= 5
        assert "".join([*texts, found.text()]) == streamer.decoder.text_of(tokens)
        assert len(texts) >= 300 // 5 - 1
        ends = [(a, b) for a, b in pairwise(texts) if not b.startswith(" ")]
        assert all(" " not in a.strip() for a, _ in ends)
