"""Scores over seeds: sums by hand, sacreBLEU's own BLEU, and what a test may not call a win."""

import numpy as np
import pytest
import sacrebleu

from espnet_ext.score.significance import seeds
from espnet_ext.score.significance.bootstrap import bootstrap_interval, paired_difference
from espnet_ext.score.statistics import statistics_of

REFERENCES = ["the cat sat on the mat", "a dog", "birds fly south in the winter time"] * 5
HYPOTHESES = ["the cat sat on a mat", "a dog", "birds fly in winter"] * 5


def counted(errors, lengths):
    """Counts (seeds, utterances, 2) of errors (seeds, utterances)."""
    return np.stack([errors, np.broadcast_to(lengths, errors.shape)], axis=2)


def test_word_errors_are_those_of_the_alignment():
    found = statistics_of("wer")
    counts = found.count(REFERENCES, HYPOTHESES)
    assert counts[:3].tolist() == [[1, 6], [0, 2], [3, 7]]
    better = counts * [0, 1]
    value, ends = seeds.mean_score(np.stack([counts, better]), found.score)
    assert value == pytest.approx((4 / 15 + 0) / 2)
    assert ends[0] < value < ends[1]


@pytest.mark.parametrize(
    ("metric", "of_corpus"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)]
)
def test_bleu_and_chrf_of_sums_are_sacrebleus(metric, of_corpus):
    found = statistics_of(metric, "en")
    counts = found.count(REFERENCES, HYPOTHESES)
    whole = of_corpus(HYPOTHESES, [REFERENCES]).score
    assert found.score(counts.sum(axis=0)) == pytest.approx(whole, abs=1e-9)
    assert 1 < whole < 99
    assert f"version:{sacrebleu.__version__}" in found.signature


def test_one_seed_is_the_bootstrap_of_utterances():
    random = np.random.default_rng(0)
    lengths = random.integers(3, 12, 400)
    first, second = random.binomial(lengths, 0.5), random.binomial(lengths, 0.46)
    score = statistics_of("wer").score
    mine = seeds.difference(counted(first[None], lengths), counted(second[None], lengths), score)
    other = paired_difference(first, second, lengths)
    assert mine.value == pytest.approx(other.value)
    assert mine.interval == pytest.approx(other.interval, abs=0.004)
    _, ends = seeds.mean_score(counted(first[None], lengths), score)
    assert ends == pytest.approx(bootstrap_interval(first, lengths), abs=0.004)


def test_what_one_lucky_seed_made_is_inconclusive():
    random = np.random.default_rng(1)
    lengths = np.full(600, 8)
    base = np.stack([random.binomial(lengths, 0.5) for _ in range(3)])
    lucky, steady = base.copy(), base - (random.random(base.shape) < 0.3) * (base > 0)
    lucky[1] = np.maximum(lucky[1] - 1, 0)
    score = statistics_of("wer").score
    assert seeds.difference(counted(base, lengths), counted(steady, lengths), score).p < 0.01
    found = seeds.difference(counted(base, lengths), counted(lucky, lengths), score)
    assert found.value < -0.02
    assert found.p > 0.05
    same = seeds.difference(counted(base, lengths), counted(base, lengths), score)
    assert (same.value, same.p) == (0, 1)


def test_one_utterance_has_no_interval():
    found = statistics_of("wer")
    counts = found.count(["a b"], ["a c"])[None]
    assert seeds.mean_score(counts, found.score) == (0.5, None)
    assert seeds.difference(counts, counts, found.score) is None
