"""Error rates, intervals, the paired test and the reading of texts."""

import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError
from espnet_ext.results.pages.scores import score_lines
from espnet_ext.results.schema import RecognitionScore
from espnet_ext.score.pairs import Pairs, read_pairs
from espnet_ext.score.recognition import score_set
from espnet_ext.score.significance.bootstrap import (
    block_size,
    bootstrap_interval,
    paired_difference,
)
from espnet_ext.score.wer import align_characters, align_words, alignment_lines
from espnet_ext.validation import parse
from tests.fixtures.texts import sentences, spoilt, write_table

# --- normalisation


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


# --- rates


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


# --- intervals and tests


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000))
def test_interval_holds_the_value_and_repeats(size, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size)
    errors = rng.binomial(lengths, 0.4)
    found = bootstrap_interval(errors, lengths, resamples=500)
    assert found is not None
    assert found[0] <= errors.sum() / lengths.sum() <= found[1]
    assert found == bootstrap_interval(errors, lengths, resamples=500)


def test_interval_agrees_with_kaldialign():
    references = sentences(300)
    hypotheses = spoilt(references, 0.3, seed=1)
    errors = align_words(references, hypotheses).errors
    low, high = bootstrap_interval(errors.totals, errors.lengths)
    expected = kaldialign.bootstrap_wer_ci(
        [r.split() for r in references], [h.split() for h in hypotheses]
    )
    assert low == pytest.approx(expected["ci95min"], abs=0.003)
    assert high == pytest.approx(expected["ci95max"], abs=0.003)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        lengths = rng.integers(3, 12, 100)
        low, high = bootstrap_interval(rng.binomial(lengths, 0.3), lengths, resamples=400)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_speakers_that_differ_widen_the_interval():
    lengths = np.full(500, 8)
    speakers = [f"s{i // 100}" for i in range(500)]
    errors = np.repeat([0, 2, 4, 6, 8], 100)
    by_utterance = bootstrap_interval(errors, lengths)
    by_speaker = bootstrap_interval(errors, lengths, speakers)
    assert by_speaker[1] - by_speaker[0] > 3 * (by_utterance[1] - by_utterance[0])


def test_one_unit_has_no_interval():
    one = np.array([3])
    assert bootstrap_interval(one, one) is None
    assert bootstrap_interval(np.array([1, 2]), np.array([4, 4]), ["s", "s"]) is None
    assert paired_difference(one, one, one) is None


def test_paired_test_of_equal_systems_finds_nothing():
    errors, lengths = np.array([1, 2, 0, 3] * 20), np.full(80, 5)
    found = paired_difference(errors, errors, lengths)
    assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_paired_test_finds_a_clear_difference_in_the_right_direction():
    references = sentences(200)
    good = align_words(references, spoilt(references, 0.2, seed=1)).errors
    bad = align_words(references, spoilt(references, 0.4, seed=2)).errors
    better = paired_difference(bad.totals, good.totals, good.lengths)
    worse = paired_difference(good.totals, bad.totals, good.lengths)
    assert better.value < 0 and better.interval[1] < 0 and better.p < 0.001
    assert worse.value > 0 and worse.interval[0] > 0 and worse.p < 0.001


def test_paired_test_keeps_its_level():
    rng = np.random.default_rng(5)
    lengths = np.full(100, 8)
    ps = []
    for _ in range(200):
        first, second = rng.binomial(lengths, 0.3), rng.binomial(lengths, 0.3)
        ps.append(paired_difference(first, second, lengths, resamples=400).p)
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.10


def test_score_of_a_set():
    references = sentences(60)
    pairs = Pairs(
        ids=[f"u{i:03}" for i in range(60)],
        references=references,
        hypotheses=spoilt(references, 0.2, seed=1),
        speakers=[f"s{i % 5}" for i in range(60)],
        baseline=spoilt(references, 0.5, seed=2),
    )
    score = score_set(pairs, "test", "ctc_greedy", "base")
    found = parse(RecognitionScore, score, "score")
    wer, edits = found.metrics["wer"], found.errors["wer"]
    assert wer.interval[0] < wer.value < wer.interval[1]
    assert edits.substitutions == sum(text.split().count("xx") for text in pairs.hypotheses)
    assert (edits.insertions, edits.deletions, found.speakers) == (0, 0, 5)
    of_words, of_characters = found.compared("wer"), found.compared("cer")
    assert found.baseline == "base" and of_words.p < 0.01 and of_characters.p < 0.01
    assert of_words.interval[0] <= of_words.difference <= of_words.interval[1] < 0
    assert of_words.mapsswe.p < 1e-6 and of_words.mapsswe.z < 0
    lines = "; ".join(score_lines(found))
    assert "MAPSSWE p < 0.001" in lines and lines.count("MAPSSWE") == 1  # not of characters
    del score["comparisons"][0]["mapsswe"]  # as in a file of before there was the test
    assert "MAPSSWE" not in "; ".join(score_lines(parse(RecognitionScore, score, "score")))


# --- sets of any size


def test_a_score_does_not_depend_on_how_many_alignments_are_held_at_once(monkeypatch):
    references = sentences(60)
    pairs = Pairs(
        ids=[f"u{i:03}" for i in range(60)],
        references=references,
        hypotheses=spoilt(references, 0.2, seed=1),
        baseline=spoilt(references, 0.5, seed=2),
    )
    whole, parts = [], []

    def seen(found):
        def keep(first, words):
            ids = pairs.ids[first : first + len(words.edits)]
            found.append((first, list(alignment_lines(ids, words))))

        return keep

    score = score_set(pairs, "s", "m", "base", seen(whole))
    monkeypatch.setattr("espnet_ext.score.wer.CHUNK", 7)
    monkeypatch.setattr("espnet_ext.score.significance.mapsswe.CHUNK", 7)
    monkeypatch.setattr("espnet_ext.score.significance.mapsswe.CELLS", 500)
    assert score_set(pairs, "s", "m", "base", seen(parts)) == score
    assert [first for first, _ in parts] == list(range(0, 60, 7))
    assert [line for _, lines in parts for line in lines] == whole[0][1]


def test_huge_sets_are_drawn_in_blocks(monkeypatch):
    """Of independent utterances, blocks give the interval of single ones."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(5, 15, 3000)
    errors = rng.binomial(lengths, 0.2)
    single = bootstrap_interval(errors, lengths)
    assert block_size(3000) == block_size(100_000) == 1
    assert block_size(100_001) == 11
    monkeypatch.setattr("espnet_ext.score.significance.bootstrap.MOST_UNITS", 1000)
    monkeypatch.setattr("espnet_ext.score.significance.bootstrap.BLOCKS", 500)
    assert block_size(3000) == 6
    blocks = bootstrap_interval(errors, lengths)
    width = single[1] - single[0]
    assert blocks != single
    assert blocks == pytest.approx(single, abs=0.15 * width)
    # Neighbours that err together: single utterances would promise too much.
    together = np.repeat(rng.binomial(1, 0.2, 500), 6) * lengths
    monkeypatch.setattr("espnet_ext.score.significance.bootstrap.MOST_UNITS", 100_000)
    low, high = bootstrap_interval(together, lengths)
    monkeypatch.setattr("espnet_ext.score.significance.bootstrap.MOST_UNITS", 1000)
    honest = bootstrap_interval(together, lengths)
    assert honest[1] - honest[0] > 1.8 * (high - low)


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_plain_text_is_normalised_as_any_text_is(text):
    """A letter that is not ASCII takes the long way."""
    assert normalise_text(f"{text} \u00e9") == f"{normalise_text(text)} \u00e9".strip()


# --- reading


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"u1 a\nu1 b\n", "u1 occurs twice (line 2)"),
        (b"u1 a\n\nu2 b\n", "line 2 is empty"),
        (b"u1 \xff\n", "not UTF-8 at byte 3"),
    ],
)
def test_bad_table(tmp_path, content, part):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert part in str(error.value) and str(path) in str(error.value)


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


def test_an_empty_hypothesis_is_all_deletions(tmp_path):
    reference = write_table(tmp_path / "ref", ["u1", "u2"], ["a b", "c"])
    hypothesis = write_table(tmp_path / "hyp", ["u2", "u1"], ["c", ""])
    score = score_set(read_pairs(reference, hypothesis), "s", "m")
    found = (score["errors"]["wer"]["deletions"], score["metrics"]["wer"]["value"])
    assert found == (2, pytest.approx(2 / 3))
