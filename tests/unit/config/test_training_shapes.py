"""Configs whose parts have the wrong shape: every verb refuses them in one line."""

import argparse
import contextlib
import importlib
import io

import pytest

from espnet_ext.cli.main import VERBS
from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError

OTHERS = ("variants", "grid", "fetch", "similarity", "demo")  # they take no training config
WITH_CONFIG = [verb for verb in VERBS if verb not in OTHERS]
MORE = {
    "export": ["--out", "x"],
    "transcribe": ["x.wav"],
    "label": ["x.wav", "--out", "y"],
    "stream": ["speech.flac"],
}  # what a verb needs besides its config
BROKEN = {
    "include: 3": "include: expected files, not 3",
    "include: [base.yaml, 3]": "include: expected files, not 3",
    "recipe: 3": "recipe: expected keys and values, not 3",
    "recipe: [vocabulary]": "recipe: expected keys and values",
    "recipe: {1: 2}": "recipe: unknown key '1'",
    "1: 2": "keys are words, not 1",
    "frontend_conf: [1]": "frontend_conf: expected keys and values, not [1]",
    "encoder_conf: conformer": "encoder_conf: expected keys and values",
    "[]": "expected keys and values at the top level",
    "false": "expected keys and values at the top level",
    "{": "not valid YAML",
    "encoder: caf\xe9": "not UTF-8 at byte",
}
# Verbs that refuse these before they import torch; the others do so once they have.
LIGHT = ("features", "tokens", "decode", "score")
WRONG = {
    "recipe: {vocabulary: many}": "vocabulary must be a whole number from 5 to",
    "recipe: {average: 0}": "average must be a whole number of at least 1",
    "recipe: {train_set: 3}": "train_set must be a name, not 3",
    "recipe: {features: arks}": "unknown features 'arks'; did you mean 'ark'?",
    "recipe: {decode: ctc_greedy}": "decode must name a method",
    "recipe: {decode: {}}": "decode must name a method",
    "recipe: {task: [cls]}": "unknown task '['cls']'; did you mean 'cls'?",
    "token_type: [char]": "token_type: the recipes make char, bpe or hugging_face tokens",
}


def complaint(verb: str, folder) -> str:
    """Run a verb on conf/train_wrong.yaml; return the one line that it must end with.

    ``check``, which takes many configs, has printed each problem before that line.
    """
    module = importlib.import_module(f"espnet_ext.cli.{verb}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    errors = io.StringIO()
    with pytest.raises(UserError) as error, contextlib.redirect_stderr(errors):
        module.run(parser.parse_args(["conf/train_wrong.yaml", *MORE.get(verb, [])]))
    line = errors.getvalue() if verb == "check" else str(error.value)
    assert verb == "check" or "\n" not in line
    assert "train_wrong.yaml: " in line
    assert [path.name for path in folder.iterdir()] == ["conf"]
    return line


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's folder; call it with the text of its config."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, encoding: str = "utf-8"):
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/base.yaml").write_text("encoder: conformer\n")
        (tmp_path / "conf/train_wrong.yaml").write_text(f"{text}\n", encoding=encoding)
        return tmp_path

    return write


@pytest.mark.parametrize("verb", WITH_CONFIG)
@pytest.mark.parametrize("text", BROKEN)
def test_every_verb_refuses_a_wrong_shape(recipe, verb, text):
    assert BROKEN[text] in complaint(verb, recipe(text, "latin-1"))


@pytest.mark.parametrize("verb", LIGHT)
@pytest.mark.parametrize("text", WRONG)
def test_verbs_refuse_a_wrong_value_of_recipe(recipe, verb, text):
    assert WRONG[text] in complaint(verb, recipe(text))


@pytest.mark.parametrize("value", ["many", "[80]", "0", "true"])
@pytest.mark.parametrize("key", ["n_mels", "fs"])
def test_arks_need_whole_numbers(recipe, key, value):
    text = f"frontend: kaldi_fbank\nfrontend_conf: {{{key}: {value}}}\nrecipe: {{features: ark}}"
    said = complaint("features", recipe(text))
    assert f"frontend_conf: {key} must be a whole number" in said


def test_features_with_differences_cannot_stream(recipe):
    text = "frontend: kaldi_fbank\nfrontend_conf: {n_mels: 26, deltas: 2}"
    assert "deltas cannot stream" in complaint("stream", recipe(text))


def test_without_token_type_the_tokens_are_sentencepiece(recipe):
    """The default of ESPnet, of ``check`` and of training."""
    from espnet_ext.cli import tokens

    folder = recipe("recipe: {vocabulary: 16}")
    (folder / "data/train").mkdir(parents=True)
    (folder / "data/train/text").write_text(
        "a the cat sat on the mat\nb a hat that sat\nc that mat and the hat\nd on the hat the cat\n"
    )
    tokens.run(argparse.Namespace(config="conf/train_wrong.yaml"))
    assert (folder / "data/token_list/unigram16/bpe.model").is_file()
    assert len((folder / "data/token_list/unigram16/tokens.txt").read_text().splitlines()) >= 16


@pytest.mark.parametrize("text", ["include:\nencoder: conformer", "include: base.yaml\nrecipe:"])
def test_a_key_without_a_value_is_as_if_it_were_not_there(recipe, text):
    recipe(text)
    assert load_config("conf/train_wrong.yaml").espnet == {"encoder": "conformer"}


@pytest.mark.parametrize("key", ["vocabulary", "classes"])
def test_lists_of_tokens_are_bounded(tmp_path, key):
    path = tmp_path / "train_x.yaml"
    path.write_text(f"encoder: conformer\nrecipe: {{{key}: 1000000000}}\n")
    with pytest.raises(UserError, match=f"recipe: {key} must be a whole number .*not 1000000000"):
        load_config(path)
