"""Token lists: characters, BPE and unigram SentencePiece, from the training text alone."""

import argparse
from pathlib import Path

import pytest
import yaml

from espnet_ext.cli import tokens
from espnet_ext.errors import UserError
from tests.fixtures import foundation
from tests.fixtures.texts import sentences


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe folder with transcripts; dev has a letter that train lacks."""
    monkeypatch.chdir(tmp_path)
    for name, texts in (("train", sentences(60)), ("dev", ["quiz"])):
        path = Path("data", name, "text")
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"u{k:02} {text}\n" for k, text in enumerate(texts)))
    return tmp_path


def make(kind: str, espnet: dict | None = None, **recipe: object) -> None:
    """Run the verb with a config of that token type."""
    config = {"encoder": "conformer", "token_type": kind, **(espnet or {}), "recipe": recipe}
    Path("train_x.yaml").write_text(yaml.safe_dump(config))
    tokens.run(argparse.Namespace(config="train_x.yaml"))


def listed(name: str) -> list[str]:
    return Path("data/token_list", name, "tokens.txt").read_text().splitlines()


def test_characters_by_falling_frequency(folder):
    make("char")
    found = listed("char")
    assert found[:2] == ["<blank>", "<unk>"] and found[-1] == "<sos/eos>"
    text = " ".join(sentences(60))
    counts = [text.count(" " if token == "<space>" else token) for token in found[2:-1]]
    assert counts == sorted(counts, reverse=True) and 0 not in counts
    assert set(found[2:-1]) == set(text.replace(" ", "")) | {"<space>"}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_spells_every_sentence(folder, kind):
    make("bpe", sentencepiece=kind, vocabulary=30)
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

    found = listed(f"{kind}30")
    # The three control symbols of SentencePiece give way to ESPnet's.
    assert len(found) == len(set(found)) == 30
    assert found[:2] == ["<blank>", "<unk>"] and found[-1] == "<sos/eos>"
    tokenizer = SentencepiecesTokenizer(f"data/token_list/{kind}30/bpe.model")
    for text in sentences(60):
        pieces = tokenizer.text2tokens(text)
        assert set(pieces) <= set(found[2:-1])
        assert tokenizer.tokens2text(pieces) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_long_transcript_is_read_too(folder, kind):
    long = " ".join([*sentences(60) * 5, "zyx"])  # letters that only it has
    assert len(long) > 4192  # the limit that SentencePiece has by default
    with Path("data/train/text").open("a") as text:
        text.write(f"u99 {long}\n")
    make("bpe", sentencepiece=kind, vocabulary=40)
    assert set("zyx") <= {letter for token in listed(f"{kind}40") for letter in token}


def test_bpe_and_unigram_are_two_lists(folder):
    for kind in ("bpe", "unigram"):
        make("bpe", sentencepiece=kind, vocabulary=30)
    assert listed("bpe30") != listed("unigram30")


def test_too_many_pieces_for_the_text(folder):
    with pytest.raises(UserError, match="cannot make recipe: vocabulary: 5000 pieces"):
        make("bpe", vocabulary=5000)
    assert not list(Path("data").rglob("tokens.txt"))


def test_up_to_date_until_the_text_changes(folder, capsys):
    make("char")
    make("char")
    assert "up to date" in capsys.readouterr().out
    with open("data/train/text", "a") as stream:
        stream.write("u99 quiz\n")
    make("char")
    assert "z" in listed("char")


def test_a_translation_has_a_list_for_each_language(folder):
    lines = Path("data/train/text").read_text().splitlines()
    for language in ("en", "de"):
        swapped = [f"{line.split()[0]} {language} {line.split()[1]}" for line in lines]
        Path(f"data/train/text.{language}").write_text("\n".join(swapped) + "\n")
        make("char", task="st", target=language)
    assert set("en") <= set(listed("char.en"))
    assert "d" in listed("char.de")[2:9]
    with pytest.raises(UserError, match=r"no data/train/text.fr: recipe: target: 'fr'.*de, en"):
        make("char", task="st", target="fr")
    with pytest.raises(UserError, match=r"no data/train/text.dee.*did you mean 'de'"):
        make("char", task="st", target="dee")


WHOLE = {"decoder": "whisper", "decoder_conf": {"path": "model"}, "model_conf": {"ctc_weight": 0.0}}


def whole(espnet: dict) -> None:
    """Run the verb with the tokens of a pretrained model."""
    make("hugging_face", espnet, decode={"attention_greedy": {}})


def test_tokens_of_a_pretrained_model_are_its_own(folder, capsys):
    model = foundation.make(folder / "model")
    whole(WHOLE)
    found = listed("model")
    assert len(found) == model.config.vocab_size
    assert found[model.config.eos_token_id] == "<|endoftext|>"
    copied = Path("data/token_list/model/tokenizer.json")
    assert copied.read_bytes() == Path("model/tokenizer.json").read_bytes()
    whole(WHOLE)
    assert capsys.readouterr().out.endswith("data/token_list/model is up to date\n")


def test_fewer_merges_have_a_list_of_their_own_and_tell_their_price(folder, capsys):
    foundation.make(folder / "model")
    whole(WHOLE)
    capsys.readouterr()
    make("hugging_face", WHOLE, decode={"attention_greedy": {}}, merges=4)
    from espnet_ext.data.tokenizer import Tokenizer

    before, after = (Tokenizer(f"data/token_list/{name}") for name in ("model", "model.4"))
    lines = Path("data/train/text").read_text().splitlines()
    words = [word for line in lines for word in line.split()[1:]]
    longer = sum(len(after.tokens(word)) > len(before.tokens(word)) for word in words)
    said = capsys.readouterr().out
    assert 0 < longer < len(words)
    assert f"with 4 merges {longer / len(words):.1%} of the words of train are written in" in said
    assert {token for word in words for token in after.tokens(word)} <= set(listed("model.4"))
    assert len(listed("model.4")) == len(listed("model"))
    assert len(set(listed("model")) - set(listed("model.4"))) == len(
        [name for name in listed("model.4") if name.startswith("<|unused")]
    )


def test_merges_are_of_a_pretrained_model(folder):
    with pytest.raises(UserError, match=r"recipe: merges is for token_type: hugging_face"):
        make("bpe", merges=4)


def test_a_tokenizer_of_another_model_or_none_is_refused(folder):
    foundation.make(folder / "model")
    foundation.change(Path("model/config.json"), decoder_start_token_id=3)
    with pytest.raises(UserError, match=r"not of one model: <\|startoftranscript\|> is \d+"):
        whole(WHOLE)
    Path("model/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no model/tokenizer\.json: .* give the folder of a whole"):
        whole(WHOLE)
    assert not Path("data/token_list/model/tokens.txt").exists()


def test_ctc_cannot_write_the_token_that_is_its_blank(folder):
    foundation.make(folder / "model")
    with_ctc = {**WHOLE, "model_conf": {"ctc_weight": 0.3}}
    whole(with_ctc)
    Path("data/train/text").write_text("u00 stop !\n")
    whole(WHOLE)
    with pytest.raises(UserError, match=r"data/train/text: u00 has the token '.?!'"):
        whole(with_ctc)


def test_common_tokens_are_those_of_the_training_text(folder, capsys):
    foundation.make(folder / "model")
    rare = {**WHOLE, "encoder_conf": {"nested": {"over": "model", "table": 2, "rare": 4}}}
    whole(WHOLE)
    path = Path("data/token_list/model/common_train.txt")
    assert not path.exists()
    whole(rare)
    from espnet_ext.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(Path("model"))
    lines = Path("data/train/text").read_text().splitlines()
    used = {token for line in lines for token in tokenizer.tokens(line.partition(" ")[2])}
    found = path.read_text().splitlines()
    assert {token for token in found if not token.startswith("<")} == used
    assert {"<|endoftext|>", "<|startoftranscript|>"} <= set(found)
    assert found == [token for token in listed("model") if token in found]
    assert f"tokens: {len(found)} of {len(listed('model'))} are common" in capsys.readouterr().out
    whole(rare)
    assert "are common" not in capsys.readouterr().out
    Path("data/train/text").write_text("u00 stop\n")
    whole(rare)
    assert len(path.read_text().splitlines()) < len(found)
