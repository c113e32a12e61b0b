"""Scores of pruned models."""

import numpy as np
import pytest

from espnet_ext.analysis.pruning_scores import ClassJudge, WordJudge, is_removable
from espnet_ext.errors import UserError

TEXTS = ["The river, the stone.", "a lizard", "go on"]


def test_word_errors_of_any_selection():
    judge = WordJudge(TEXTS)
    counts = judge.counted(["the river stone", "a blizzard sang", ""])
    assert counts.tolist() == [[1, 4], [2, 2], [2, 2]]
    assert judge.value(counts, np.arange(3)) == 5 / 8
    assert judge.value(counts, np.array([0, 0, 2])) == 4 / 10
    assert judge.record() == {"classes": [], "chance": None, "majority": None}


@pytest.mark.parametrize(("value", "kept"), [(0.1, True), (0.145, True), (0.146, False)])
def test_a_recogniser_keeps_95_percent_of_its_right_words(value, kept):
    assert is_removable(WordJudge(TEXTS), value, 0.1) is kept


def test_classes_of_any_selection():
    judge = ClassJudge(["a", "b", "b", "a"], "accuracy")
    judge.use_classes(["a", "b"])
    counts = judge.counted(["a", "b", "a", "<unk>"])
    assert counts.tolist() == [[0, 0], [1, 1], [1, 0], [0, 2]]
    assert judge.value(counts, np.arange(4)) == 0.5
    assert judge.record()["majority"] == 0.5
    assert is_removable(judge, 0.475, 0.5) and not is_removable(judge, 0.47, 0.5)
    f1 = ClassJudge(["a", "b", "b", "a"], "weighted_f1")
    f1.use_classes(["a", "b"])
    # F1 of a: 2 / (2 + 1 + 1); of b: 2 / (2 + 0 + 1); of no class: 0, and it has no weight.
    assert f1.value(counts, np.arange(4)) == pytest.approx((0.5 + 2 / 3) / 2)


def test_probes_that_do_not_fit_are_refused():
    judge = ClassJudge(["a", "c"], "accuracy")
    with pytest.raises(UserError, match="the set has the class c"):
        judge.use_classes(["a", "b"])
    with pytest.raises(UserError, match="different classes"):
        judge.use_classes(["a", "c"])
    with pytest.raises(UserError, match="no word"):
        WordJudge(["...", ""])
