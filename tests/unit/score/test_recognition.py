"""The score of a set: errors, intervals and tests in one record."""

import pytest

from espnet_ext.results.pages.scores import score_lines
from espnet_ext.results.schema import RecognitionScore
from espnet_ext.score.pairs import Pairs, read_pairs
from espnet_ext.score.recognition import score_set
from espnet_ext.score.wer import alignment_lines
from espnet_ext.validation import parse
from tests.fixtures.texts import sentences, spoilt, write_table


def test_score_of_a_set():
    references = sentences(60)
    pairs = Pairs(
        ids=[f"u{i:03}" for i in range(60)],
        references=references,
        hypotheses=spoilt(references, 0.2, seed=1),
        speakers=[f"s{i % 5}" for i in range(60)],
        baselines={"base": spoilt(references, 0.5, seed=2)},
    )
    score = score_set(pairs, "test", "ctc_greedy")
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


def test_a_score_does_not_depend_on_how_many_alignments_are_held_at_once(monkeypatch):
    references = sentences(60)
    pairs = Pairs(
        ids=[f"u{i:03}" for i in range(60)],
        references=references,
        hypotheses=spoilt(references, 0.2, seed=1),
        baselines={"base": spoilt(references, 0.5, seed=2)},
    )
    whole, parts = [], []

    def seen(found):
        def keep(first, words):
            ids = pairs.ids[first : first + len(words.edits)]
            found.append((first, list(alignment_lines(ids, words))))

        return keep

    score = score_set(pairs, "s", "m", seen(whole))
    monkeypatch.setattr("espnet_ext.score.wer.CHUNK", 7)
    monkeypatch.setattr("espnet_ext.score.significance.mapsswe.CHUNK", 7)
    monkeypatch.setattr("espnet_ext.score.significance.mapsswe.CELLS", 500)
    assert score_set(pairs, "s", "m", seen(parts)) == score
    assert [first for first, _ in parts] == list(range(0, 60, 7))
    assert [line for _, lines in parts for line in lines] == whole[0][1]


def test_an_empty_hypothesis_is_all_deletions(tmp_path):
    reference = write_table(tmp_path / "ref", ["u1", "u2"], ["a b", "c"])
    hypothesis = write_table(tmp_path / "hyp", ["u2", "u1"], ["c", ""])
    score = score_set(read_pairs(reference, hypothesis), "s", "m")
    found = (score["errors"]["wer"]["deletions"], score["metrics"]["wer"]["value"])
    assert found == (2, pytest.approx(2 / 3))
