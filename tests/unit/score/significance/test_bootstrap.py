"""Bootstrap intervals and the paired test: their coverage, level, direction, and huge sets."""

import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.score.significance.bootstrap import (
    block_size,
    bootstrap_interval,
    paired_difference,
)
from espnet_ext.score.wer import align_words
from tests.fixtures.texts import sentences, spoilt


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
