"""Normalisation of texts, and what a corpus writes and nobody says."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.data.text import normalise_text, without_asides
from espnet_ext.score.wer import align_words


def rate(references, hypotheses):
    texts = ([normalise_text(text) for text in side] for side in (references, hypotheses))
    return align_words(*texts).errors.rate


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("*sigh* Well (quietly) no. [door] <noise>", "Well no."),
        ("[ door ] yes (in an aside: no)", "yes"),
        ("a (b", "a (b"),
        ("what the f*** are you on about s*** mate", None),
        ("2 * 3 * 4", None),
        ("if a < b and b > c", None),
        ("sad :( but then it got better :) yes", None),
        ("file(s) of f(x)y", None),
        ("(" + "far too long " * 20 + "for an aside) yes", None),
    ],
)
def test_asides(raw, expected):
    assert without_asides(raw) == (raw if expected is None else expected)


def test_scoring_removes_no_word():
    references = ["what the f*** are you on about s*** mate", "two plus two is four"]
    assert rate(references, ["what the f*** mate", references[1]]) == pytest.approx(5 / 14)
    assert normalise_text("2 * 3 * 4") == "2 3 4"
    assert normalise_text("if a < b and b > c") == "if a b and b c"
    assert normalise_text("sad :( but then :) yes") == "sad but then yes"


@pytest.mark.parametrize("unknown", ["<unk>", "\u2047", "[x]", "(x)", "*x*"])
def test_an_inserted_token_is_an_error(unknown):
    reference = "one two three four five six seven"
    hypothesis = f"one {unknown} two {unknown} three four five six seven {unknown}"
    assert rate([reference], [hypothesis]) == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    "joiner", ["\u200c", "\u200d", "\u00ad", "\u200b", "\u200e", "\u200f", "\u2060", "\ufeff"]
)
def test_format_characters_break_no_word(joiner):
    reference = f"\u0645\u06cc{joiner}\u0631\u0648\u0645 a{joiner}b c {joiner}d{joiner}"
    assert len(normalise_text(reference).split()) == 4
    assert rate([reference], [reference.replace(joiner, "")]) == 0


@pytest.mark.parametrize(
    "mark", "\u2019 \u00b4 \u2018 ` \u2032 \u02b9 \u02bc \u201b \uff07".split()
)
def test_what_is_typed_for_an_apostrophe(mark):
    plain = "don't say 'em rock 'n' roll it's the dogs' l'\u00e9t\u00e9"
    assert rate([plain], [plain.replace("'", mark)]) == 0


def test_capital_i_with_a_dot():
    assert rate(["istanbul"], ["\u0130stanbul"]) == 0
    assert rate(["istanbul"], ["I\u0307STANBUL"]) == 0


def test_a_mark_on_a_symbol_is_no_word():
    assert normalise_text("ok \u2764\ufe0f yes \u25cc\u0301") == "ok yes"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_normalised_text_stays_as_it_is(text):
    found = normalise_text(text)
    assert normalise_text(found) == found
    assert not any(unicodedata.category(word[0])[0] == "M" for word in found.split())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Hello, IT\u2019S me!", "hello it's me"),
        ("Well (quietly) no. [door]", "well quietly no door"),
        ("a (b", "a b"),
        ("\ufb01ve  \u2167 42%", "five viii 42"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("...", ""),
        ("well-known", "well known"),
    ],
)
def test_normalisation(raw, expected):
    assert normalise_text(raw) == expected


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_plain_text_is_normalised_as_any_text_is(text):
    """A letter that is not ASCII takes the long way."""
    assert normalise_text(f"{text} \u00e9") == f"{normalise_text(text)} \u00e9".strip()
