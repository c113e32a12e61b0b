"""Comparisons of scores: verdicts, their reasons, and gains."""

import pytest

from espnet_ext.results.comparison import Comparison
from espnet_ext.results.schema import RecognitionScore
from espnet_ext.validation import parse
from tests.fixtures.a_run import a_score


def compared(name, metric, **change) -> Comparison:
    """A comparison of the fixture's scores, changed."""
    score = parse(RecognitionScore, a_score(name), "score")
    return score.compared(metric).model_copy(update=change)


def test_verdicts_need_the_test_and_few_speakers_need_more():
    assert compared("test", "wer").verdict() == "better"
    assert compared("test", "cer").verdict() == "worse"
    assert compared("unseen", "wer").verdict() == "inconclusive"
    assert compared("unseen", "cer").verdict() == "worse"
    assert compared("test", "wer", p=0.2).verdict() == "inconclusive"
    same = {"difference": 0.0, "interval": (0.0, 0.0)}
    assert compared("test", "wer", **same, p=1.0).verdict() == "equal"
    alone = compared("test", "wer", difference=0.0, p=None, interval=None)
    assert alone.verdict() == "inconclusive" and alone.sentence().endswith(": too few to test")
    assert "worse than base_xs (+2.0 points" in compared("test", "cer").sentence()


def test_what_is_inconclusive_says_why():
    sentence = compared("unseen", "wer").sentence()
    assert sentence.startswith("WER inconclusive against base_xs (-3.0 points; 95 % interval -5.0")
    assert sentence.endswith("by speaker -8.0 to +2.0, p 0.010): the interval by speaker holds 0")
    assert compared("test", "wer", p=0.2).sentence().endswith("): p is not below 0.05")
    assert ": " not in compared("test", "wer").sentence()


@pytest.mark.parametrize(
    ("metric", "gain", "ends"),
    [("wer", 0.03, (0.01, 0.05)), ("cer", -0.02, (-0.03, -0.01))],
)
def test_a_gain_is_positive_where_the_system_is_better(metric, gain, ends):
    found = compared("test", metric)
    assert (found.gain, found.gain_interval) == (gain, ends)
    few = compared("unseen", metric)
    assert few.gain_interval == tuple(sorted(-end for end in few.by_speaker))
