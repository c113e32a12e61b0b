"""Scores of classification: by hand, against scikit-learn and by drawing utterances one by one."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from espnet_ext.errors import UserError
from espnet_ext.results.pages.scores import score_lines
from espnet_ext.results.schema import ClassScore
from espnet_ext.score.classification import (
    Decisions,
    metrics,
    read_decisions,
    score_decisions,
    vote,
    weighted_f1,
)
from espnet_ext.score.significance.folds import mean_by, sign_flip_p, summarise
from espnet_ext.validation import parse

CLASSES = ["anger", "joy", "sad"]


def decisions(count=60, seed=0, right=0.8):
    rng = np.random.default_rng(seed)
    references = rng.choice(CLASSES, count, p=[0.5, 0.3, 0.2])
    systems = [
        np.where(rng.random(count) < share, references, rng.choice(CLASSES, count))
        for share in (right, 0.3)
    ]
    return Decisions(
        ids=[f"u{n:03}" for n in range(count)],
        references=references.tolist(),
        hypotheses=systems[0].tolist(),
        speakers=[f"s{n % 5}" for n in range(count)],
        classes=CLASSES,
        baselines={"base": systems[1].tolist()},
    )


def test_a_case_by_hand():
    """anger: 2 of 3, named 3 times; joy: never named; sad: 1 of 1, named twice."""
    found = metrics(
        ["anger", "anger", "anger", "joy", "sad"],
        ["anger", "anger", "sad", "anger", "sad"],
        CLASSES,
    )
    assert found["per_class"]["anger"]["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["per_class"]["joy"] == {"f1": 0, "precision": 0, "recall": 0, "support": 1}
    assert found["per_class"]["sad"]["f1"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["weighted_f1"] == pytest.approx((3 * 2 / 3 + 0 + 2 / 3) / 5)
    assert found["unweighted_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["confusion"] == [[2, 0, 1], [1, 0, 0], [0, 0, 1]]
    # always anger: F1 of anger 2*3/(3+5), weight 3/5
    assert found["majority"] == {
        "name": "anger",
        "weighted_f1": pytest.approx(0.6 * 0.75),
    }


def test_a_class_without_references_does_not_count_in_the_means():
    found = metrics(["anger", "joy"], ["anger", "sad"], CLASSES)
    assert found["unweighted_accuracy"] == pytest.approx(0.5)
    assert found["weighted_f1"] == pytest.approx(0.5)
    assert found["per_class"]["sad"]["support"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_formula_of_the_draws_is_scikit_learns(seed):
    item = decisions(seed=seed)
    matrix = confusion_matrix(item.references, item.hypotheses, labels=CLASSES)
    expected = f1_score(item.references, item.hypotheses, average="weighted")
    assert weighted_f1(matrix) == pytest.approx(expected, abs=1e-12)
    stacked = weighted_f1(np.stack([matrix, matrix.T]))
    assert stacked[0] == pytest.approx(expected, abs=1e-12)
    assert stacked.shape == (2,)


def resampled(item, groups, draws=1500):
    """Scores of both systems on samples with replacement, each drawn and scored plainly."""
    rng = np.random.default_rng(9)
    references, first, second = map(
        np.array, (item.references, item.baselines["base"], item.hypotheses)
    )
    members = [np.flatnonzero(np.array(groups) == g) for g in sorted(set(groups))]
    found = []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(
            [f1_score(references[chosen], s[chosen], average="weighted") for s in (first, second)]
        )
    return np.array(found).T


@pytest.mark.parametrize("by", ["ids", "speakers"])
def test_intervals_are_those_of_drawing_utterances_or_speakers(by):
    item = decisions()
    score = score_decisions(item, "test", "classify", "utterance")
    comparison = parse(ClassScore, score, "score").compared()
    drawn = resampled(item, getattr(item, by))
    key = "interval" if by == "ids" else "by_speaker"
    for got, values in (
        (score["metrics"]["weighted_f1"][key], drawn[1]),
        (score["comparisons"][0][key], drawn[1] - drawn[0]),
    ):
        expected = np.quantile(values, [0.025, 0.975])
        # 1,500 draws on the plain side: an end is known to about a tenth of the width.
        assert np.abs(np.array(got) - expected).max() < 0.12 * (expected[1] - expected[0])
    assert comparison.difference > 0
    assert comparison.p < 0.05
    assert comparison.verdict() == "better"


def test_equal_systems_are_equal():
    item = decisions()
    same = Decisions(**{**vars(item), "baselines": {"base": item.hypotheses}})
    score = score_decisions(same, "test", "classify", "utterance")
    comparison = parse(ClassScore, score, "score").compared()
    assert (comparison.difference, comparison.p) == (0, 1)
    assert comparison.verdict() == "equal"


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_several_baselines_are_compared_as_each_alone(unit):
    item = decisions()
    one_class = [CLASSES[int(speaker[1:]) % len(CLASSES)] for speaker in item.speakers]
    references = one_class if unit == "speaker" else item.references
    others = {"base": item.baselines["base"], "right": references}

    def compared(baselines):
        given = Decisions(**{**vars(item), "references": references, "baselines": baselines})
        given = vote(given) if unit == "speaker" else given
        return score_decisions(given, "test", "classify", unit)["comparisons"]

    alone = [compared({name: labels}) for name, labels in others.items()]
    assert compared(others) == [found for (found,) in alone]
    assert [found["baseline"] for (found,) in alone] == ["base", "right"]
    assert alone[0][0]["difference"] > alone[1][0]["difference"]


def test_a_class_with_f1_0_is_named():
    item = decisions()
    item = Decisions(**{**vars(item), "hypotheses": ["anger"] * 60, "baselines": {}})
    score = score_decisions(item, "test", "classify", "utterance")
    (line,) = score_lines(parse(ClassScore, score, "score"))
    assert "F1 = 0 for joy, sad" in line


def test_vote_is_by_majority_and_a_tie_goes_to_the_rarer_class():
    item = Decisions(
        ids=list("abcdefg"),
        references=["no", "no", "no", "yes", "yes", "no", "no"],
        hypotheses=["no", "yes", "no", "yes", "no", "yes", "yes"],
        speakers=["p1", "p1", "p1", "p2", "p2", "p3", "p3"],
        classes=["no", "yes"],
    )
    found = vote(item)
    assert found.ids == ["p1", "p2", "p3"]
    assert found.references == ["no", "yes", "no"]
    assert found.hypotheses == ["no", "yes", "yes"]
    score = score_decisions(found, "test", "classify", "speaker")
    parse(ClassScore, score, "score")
    accuracy = score["metrics"]["accuracy"]["value"]
    assert (score["decisions"], accuracy) == (3, pytest.approx(2 / 3))
    mixed = Decisions(**{**vars(item), "references": ["no", "yes", *item.references[2:]]})
    with pytest.raises(UserError, match="speaker p1 has utterances of the classes no, yes"):
        vote(mixed)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("label", "", "no utterance"),
        ("label", "a anger\nb jov\n", "'jov'; did you mean 'joy'"),
        ("text", "a anger\n", "no class for utterance b"),
        ("text", "a anger\nb joy\nc joy\n", "utterance c not in"),
        ("text", "a anger\nb\n", "b: no class ''"),
        ("utt2spk", "a s\n", "no speaker for utterance b"),
    ],
)
def test_each_fault_is_one_line(tmp_path, file, content, words):
    files = {"label": "a anger\nb joy\n", "text": "a joy\nb joy\n", "utt2spk": "a s\nb s\n"}
    for name, lines in (files | {file: content}).items():
        (tmp_path / name).write_text(lines)
    paths = [tmp_path / name for name in ("label", "text", "utt2spk")]
    with pytest.raises(UserError) as caught:
        read_decisions(*paths, CLASSES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_summary_separates_folds_from_seeds():
    scores = {("a", 1): 0.2, ("a", 2): 0.4, ("b", 1): 0.6, ("b", 2): 0.8}
    found = summarise(scores)
    assert mean_by(scores, 0) == pytest.approx({"a": 0.3, "b": 0.7})
    assert mean_by(scores, 1) == pytest.approx({1: 0.4, 2: 0.6})
    assert found.mean == pytest.approx(0.5)
    assert found.sd_folds == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert found.sd_seeds == pytest.approx(np.std([0.4, 0.6], ddof=1))
    del scores["a", 1]
    with pytest.raises(ValueError, match="every fold"):
        summarise(scores)


def test_the_paired_test_goes_through_all_signs():
    rng = np.random.default_rng(3)
    first = {(f"f{i}", s): rng.random() for i in range(8) for s in (1, 2)}
    second = {key: value + rng.normal(0.1, 0.15) for key, value in first.items()}
    differences = [
        np.mean([second[f"f{i}", s] - first[f"f{i}", s] for s in (1, 2)]) for i in range(8)
    ]
    signs = itertools.product((1, -1), repeat=8)
    flipped = np.array([np.mean(np.array(s) * differences) for s in signs])
    one_sided = min(
        np.mean(flipped >= np.mean(differences) - 1e-12),
        np.mean(flipped <= np.mean(differences) + 1e-12),
    )
    before, after = (np.array(list(mean_by(scores, 0).values())) for scores in (first, second))
    assert sign_flip_p(after - before) == pytest.approx(min(1, 2 * one_sided))
    assert sign_flip_p(np.array([0.1])) is None
