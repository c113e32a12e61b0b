"""Tokens of a pretrained model: all of its ids, its texts, and models that do not fit."""

import json

import pytest

from espnet_ext.data.tokenizer import (
    Tokenizer,
    first_merges,
    listed,
    source_files,
    spelled_with,
)
from espnet_ext.errors import UserError
from tests.fixtures import foundation


@pytest.fixture
def folder(tmp_path):
    foundation.tokenizer().save(str(tmp_path / "tokenizer.json"))
    sizes = {"vocab_size": foundation.COUNT, "eos_token_id": foundation.COUNT - 7}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    return tmp_path


def test_tokens_are_listed_by_their_ids(folder):
    found = listed(*source_files(str(folder)))
    assert len(found) == len(set(found)) == foundation.COUNT
    model = Tokenizer(folder)
    assert model.ids(found) == list(range(foundation.COUNT))
    assert model.names(range(foundation.COUNT)) == found
    assert found[-7:] == foundation.SPECIAL
    assert not any(" " in token or "\n" in token for token in found)


def test_ids_without_a_token_fill_the_list(folder):
    foundation.change(folder / "config.json", vocab_size=foundation.COUNT + 2)
    found = listed(*source_files(str(folder)))
    assert found[-2:] == [f"<|unused{foundation.COUNT + k}|>" for k in range(2)]
    assert Tokenizer(folder).names([foundation.COUNT]) == found[-2:-1]
    assert Tokenizer(folder).text(["a", found[-1], "b"]) == "ab"


def test_a_text_begins_with_a_blank_and_comes_back(folder):
    model = Tokenizer(folder)
    assert model.tokens("river")[0].startswith("\u0120")
    for text in ("the river and the queen", "naïve? 日本", "!"):
        assert model.text(model.tokens(text)) == text
    assert model.text(["<|en|>", *model.tokens("queen"), "<|endoftext|>"]) == "queen"
    assert model.tokens("") == []


def test_what_does_not_fit_is_refused(folder):
    config = folder / "config.json"
    foundation.change(config, eos_token_id=5)
    with pytest.raises(UserError, match=r"not of one model: <\|endoftext\|> is \d+, eos_token_id"):
        listed(*source_files(str(folder)))
    foundation.change(config, vocab_size=100)
    with pytest.raises(UserError, match=r"not of one model: 28. tokens, vocab_size 100"):
        listed(*source_files(str(folder)))
    config.write_text("[")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        listed(*source_files(str(folder)))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer can be read"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no .*tokenizer\.json: token_type: hugging_face reads"):
        source_files(str(folder))


def test_a_folder_that_brings_code_is_only_read(folder):
    """Of transformers' AutoTokenizer it would be asked to run."""
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    auto = {"AutoTokenizer": ["evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    assert Tokenizer(folder).text(Tokenizer(folder).tokens("queen")) == "queen"


def test_fewer_merges_write_the_same_texts_in_more_tokens(folder):
    whole = Tokenizer(folder)
    path = folder / "cut" / "tokenizer.json"
    path.parent.mkdir()
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    sizes = []
    for count in range(len(merges), 0, -1):
        path.write_text(first_merges(folder / "tokenizer.json", count))
        cut = Tokenizer(path.parent)
        names = listed(path, folder / "config.json")
        assert len(names) == foundation.COUNT
        for text in ("the river and the queen", "naïve? 日本", "!"):
            tokens = cut.tokens(text)
            assert cut.text(tokens) == text
            assert whole.ids(tokens) == cut.ids(tokens)
            assert set(tokens) <= set(names)
        sizes.append(len(cut.tokens("the river and the queen")))
        # The others keep their ids, and what nothing makes any more is gone.
        left = cut.model.get_vocab()
        assert left.items() <= whole.model.get_vocab().items()
        assert len(left) == len(whole.model.get_vocab()) - len(merges) + count
        assert sum(name.startswith("<|unused") for name in names) == len(merges) - count
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert cut.ids(foundation.SPECIAL) == whole.ids(foundation.SPECIAL)
    assert not any(spelled_with([name], "a")[0] for name in names if name.startswith("<|unused"))


def test_merges_that_a_tokenizer_lacks_are_refused(folder):
    path = folder / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json: recipe: merges: 9999, but it has \d+"):
        first_merges(path, 9999)
    path.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    with pytest.raises(UserError, match=r"recipe: merges needs a byte-level BPE"):
        first_merges(path, 5)
