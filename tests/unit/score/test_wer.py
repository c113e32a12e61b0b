"""Error rates and alignments, against kaldialign and by hand."""

import kaldialign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.score.wer import align_characters, align_words, alignment_lines

words = st.lists(st.sampled_from(["a", "b", "c", "ab"]), max_size=7).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=5))
def test_counts_agree_with_kaldialign(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    for aligned, tokens in (
        (align_words(references, hypotheses), str.split),
        (align_characters(references, hypotheses), list),
    ):
        expected = [
            kaldialign.edit_distance(tokens(r), tokens(h))["total"]
            for r, h in zip(references, hypotheses, strict=True)
        ]
        errors = aligned.errors
        assert errors.totals.tolist() == expected
        assert errors.lengths.tolist() == [len(tokens(r)) for r in references]
        surplus = [
            len(tokens(h)) - len(tokens(r)) for r, h in zip(references, hypotheses, strict=True)
        ]
        assert (errors.insertions - errors.deletions).tolist() == surplus
        assert errors.rate == pytest.approx(sum(expected) / errors.lengths.sum())


def test_known_counts_and_alignment_lines():
    aligned = align_words(["a b c d", "a"], ["a x d", "a b"])
    errors = aligned.errors
    assert errors.substitutions.tolist() == [1, 0]
    assert errors.insertions.tolist() == [0, 1]
    assert errors.deletions.tolist() == [1, 0]
    lines = list(alignment_lines(["u1", "u2"], aligned))
    assert len(lines) == 8
    assert lines[3] == "u1 #csid 2 1 0 1"
    assert [line.split()[2:] for line in lines[4:7]] == [["a", "***"], ["a", "b"], ["C", "I"]]


@settings(max_examples=50, deadline=None)
@given(words.filter(bool), words)
def test_alignment_file_holds_both_texts(reference, hypothesis):
    aligned = align_words([reference], [hypothesis])
    ref, hyp, op, csid = alignment_lines(["u"], aligned)
    assert [w for w in ref.split()[2:] if w != "***"] == reference.split()
    assert [w for w in hyp.split()[2:] if w != "***"] == hypothesis.split()
    assert sum(map(int, csid.split()[2:])) == len(op.split()[2:])
