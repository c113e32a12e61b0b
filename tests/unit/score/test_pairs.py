"""Texts read as pairs: what does not pair is named."""

import pytest

from espnet_ext.errors import UserError
from espnet_ext.score.pairs import read_pairs, split_baseline
from tests.fixtures.texts import write_table


@pytest.mark.parametrize(
    ("references", "hypotheses", "part"),
    [
        ({"u1": "a", "u2": "b"}, {"u1": "a"}, "no hypothesis for utterance u2"),
        ({"u1": "a"}, {"u1": "a", "u0": "", "u2": ""}, "2 utterances (u0 is the first) not in"),
        ({"u1": "a", "u2": ""}, {"u1": "a", "u2": "b"}, "utterance u2 without words"),
        ({"u1": "() ..."}, {"u1": "a"}, "utterance u1 without words"),
        ({}, {}, "no utterance in it"),
    ],
)
def test_texts_that_do_not_pair(tmp_path, references, hypotheses, part):
    reference = write_table(tmp_path / "ref", list(references), list(references.values()))
    hypothesis = write_table(tmp_path / "hyp", list(hypotheses), list(hypotheses.values()))
    with pytest.raises(UserError) as error:
        read_pairs(reference, hypothesis)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_speaker_that_is_missing(tmp_path):
    text = write_table(tmp_path / "text", ["u1", "u2"], ["a", "b"])
    utt2spk = write_table(tmp_path / "utt2spk", ["u1"], ["s"])
    with pytest.raises(UserError, match="no speaker for utterance u2"):
        read_pairs(text, text, utt2spk)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("a", ("a", "")),
        ("a/merged", ("a", "merged")),
        ("grid_x/b", ("grid_x/b", "")),
        ("grid_x/b/2L-48-4b", ("grid_x/b", "2L-48-4b")),
        ("", ("", "")),
    ],
)
def test_a_baseline_is_a_tag_with_or_without_a_variant(named, expected):
    assert split_baseline(named, {"a", "grid_x/b"}.__contains__) == expected
