"""BLEU, chrF and their test against sacreBLEU's own command, and by hand."""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import pytest

from espnet_ext import files
from espnet_ext.cli import score as verb
from espnet_ext.errors import UserError
from espnet_ext.results.pages.scores import score_lines
from espnet_ext.results.schema import TranslationScore
from espnet_ext.score import translation
from espnet_ext.score.pairs import Pairs
from espnet_ext.score.translation import score_translations
from espnet_ext.validation import parse

WORDS = "the fish swims under a heavy steel pipe and waits for the other one".split()


def texts(shift: int, count: int = 40) -> list[str]:
    """Sentences of which every ``shift``-th word is another one."""
    found = []
    for n in range(count):
        words = [WORDS[(n + k) % len(WORDS)] for k in range(4 + n % 5)]
        found.append(
            " ".join("no" if shift and (n + k) % shift == 0 else w for k, w in enumerate(words))
        )
    return found


def pairs_of(hypotheses, baseline=None, references=None) -> Pairs:
    references = references or texts(0, len(hypotheses))
    ids = [f"u{n:03}" for n in range(len(hypotheses))]
    baselines = {} if baseline is None else {"base": baseline}
    return Pairs(ids, references, hypotheses, ["s"] * len(ids), baselines)


def compared(score, metric):
    """The comparison on a metric of a score, which must fit its schema."""
    return parse(TranslationScore, score, "score").compared(metric)


def test_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; one word shorter.
    pairs = pairs_of(["a b c d x"], references=["a b c d e f"])
    score = score_translations(pairs, "test", "greedy", "en")
    expected = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert score["metrics"]["bleu"]["value"] == pytest.approx(expected, abs=1e-9)
    assert score["precisions"] == pytest.approx([80, 75, 100 * 2 / 3, 50])
    assert score["metrics"]["bleu"]["interval"] is None
    (line,) = score_lines(parse(TranslationScore, score, "score"))
    assert "no interval" in line


def command(folder, *words) -> str:
    """What sacreBLEU's own command says of files in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *words, "-w", "6", "--force"],
        cwd=folder,
        env={**os.environ, "SACREBLEU_SEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_scores_and_p_are_those_of_the_command_sacrebleu(tmp_path):
    better, worse = texts(5), texts(3)
    for name, lines in (("ref", texts(0)), ("base", worse), ("sys", better)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    words = ("ref", "-i", "base", "sys", "-m", "bleu", "chrf", "--paired-bs", "-f", "text")
    said = command(tmp_path, *words)
    rows = [
        [float(x) for x in re.findall(r"([\d.]+) \(", line)]
        for line in said.splitlines()
        if "│" in line and "±" in line and "CI" not in line
    ]
    tested = [float(p) for p in re.findall(r"p = ([\d.]+)\)", said)]
    score = score_translations(pairs_of(better, worse), "test", "greedy", "en")
    assert len(rows) == len(tested) == 2
    for n, metric in enumerate(("bleu", "chrf")):
        before, now = rows[0][n], rows[1][n]
        assert score["metrics"][metric]["value"] == pytest.approx(now, abs=1e-5)
        assert compared(score, metric).difference == pytest.approx(now - before, abs=1e-5)
        assert compared(score, metric).p == pytest.approx(tested[n], abs=1e-4)
        low, high = score["metrics"][metric]["interval"]
        assert low < now < high
    assert compared(score, "bleu").verdict() == "better"
    assert "BLEU better than base" in compared(score, "bleu").sentence()


def test_interval_and_signature_are_those_of_the_command(tmp_path):
    lines = texts(4)
    for name, content in (("ref", texts(0)), ("sys", lines)):
        (tmp_path / name).write_text("\n".join(content) + "\n")
    said = json.loads(command(tmp_path, "ref", "-i", "sys", "--confidence"))
    found = score_translations(pairs_of(lines), "test", "greedy", "en")
    mean, half = said["confidence_mean"], said["confidence_var"]
    interval = found["metrics"]["bleu"]["interval"]
    assert interval == pytest.approx([mean - half, mean + half], abs=1e-5)
    assert found["signatures"]["bleu"] == said["signature"]


def test_equal_hypotheses_are_equal_and_not_significant():
    # sacreBLEU's formula gives p = 1 / 1001 for a difference of 0.
    score = score_translations(pairs_of(texts(3), texts(3)), "test", "greedy", "en")
    assert compared(score, "bleu").p is None
    assert compared(score, "bleu").verdict() == compared(score, "chrf").verdict() == "equal"


def test_several_baselines_are_compared_as_each_alone():
    others = {"better": texts(5), "worse": texts(2)}

    def compared_with(baselines):
        pairs = dataclasses.replace(pairs_of(texts(3)), baselines=baselines)
        return score_translations(pairs, "test", "greedy", "en")["comparisons"]

    alone = {name: compared_with({name: lines}) for name, lines in others.items()}
    both = compared_with(others)
    for name, found in alone.items():
        assert [pair for pair in both if pair["baseline"] == name] == found
        assert len(found) == 2  # BLEU and chrF
    assert alone["worse"][0]["difference"] > 0 > alone["better"][0]["difference"]


def test_a_worse_system_is_worse_and_a_small_difference_is_inconclusive():
    worse = score_translations(pairs_of(texts(3), texts(5)), "test", "greedy", "en")
    assert compared(worse, "bleu").verdict() == "worse"
    other = texts(3)
    other[7] = other[7].replace("no", "nay")
    close = score_translations(pairs_of(other, texts(3)), "test", "greedy", "en")
    assert compared(close, "chrf").verdict() == "inconclusive"


def test_the_seed_of_the_user_changes_nothing(monkeypatch):
    before = score_translations(pairs_of(texts(3), texts(4)), "test", "greedy", "en")
    monkeypatch.setenv("SACREBLEU_SEED", "1")
    assert score_translations(pairs_of(texts(3), texts(4)), "test", "greedy", "en") == before
    assert os.environ["SACREBLEU_SEED"] == "1"


def test_the_tokenizer_is_that_of_the_language():
    chinese = pairs_of(["我们走吧", "他来了"], references=["我们走吧", "他来了吗"])
    score = score_translations(chinese, "test", "greedy", "zh-CN")
    assert "tok:zh" in score["signatures"]["bleu"]
    assert score["metrics"]["bleu"]["value"] > 50
    english = score_translations(pairs_of(texts(3)), "test", "greedy", "en")
    assert "tok:13a" in english["signatures"]["bleu"]
    assert "case:mixed" in english["signatures"]["bleu"]


@pytest.mark.parametrize("name", ["zh", "zho", "chi", "cmn", "yue", "ZH", "Zh-cn", "zh_TW"])
def test_a_language_by_another_name_is_the_same(name):
    chinese = pairs_of(["我们走吧", "他来了"], references=["我们走吧", "他来了吗"])
    expected = score_translations(chinese, "test", "greedy", "zh-CN")
    assert score_translations(chinese, "test", "greedy", name) | {"target": "zh-CN"} == expected


def test_languages_that_nothing_cuts_into_words_are_scored_by_characters():
    texts = ["สวัสดีครับ"] * 2
    thai = pairs_of(texts, references=texts)
    for name in ("th", "tha", "TH"):
        score = score_translations(thai, "test", "greedy", name)
        assert score["metrics"]["bleu"]["value"] == pytest.approx(100)
        assert "tok:char" in score["signatures"]["bleu"]
    (line,) = score_lines(parse(TranslationScore, score, "score"))
    assert "BLEU is over characters" in line


@pytest.mark.parametrize("name", ["xx", "english", "", "en us", "und", "12"])
def test_what_is_no_language_is_refused(name):
    with pytest.raises(UserError, match=f"no language '{name}'"):
        score_translations(pairs_of(["a"]), "test", "greedy", name)


def test_a_tokenizer_that_is_not_installed_is_one_line(monkeypatch):
    def absent(**_options):
        raise RuntimeError("Please install the Japanese extra")

    monkeypatch.setattr(translation, "BLEU", absent)
    with pytest.raises(UserError, match=r"pip install 'sacrebleu\[ja\]'"):
        score_translations(pairs_of(["a"]), "test", "greedy", "ja")


def test_hypotheses_may_be_empty():
    score = score_translations(pairs_of([""] * 5, texts(3, 5)), "test", "greedy", "en")
    assert score["metrics"]["bleu"]["value"] == 0
    parse(TranslationScore, score, "score")


def run_score(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(word) for word in words]))


def test_the_verb_scores_plain_files_and_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files.write_text(
        "conf/train_st_xs.yaml", "recipe: {task: st, target: en}\nencoder: conformer\n"
    )
    ids = [f"s-{n:03}" for n in range(30)]
    tables = {
        "data/test/text": ["cs"] * 30,  # the source is not what is scored
        "data/test/text.en": [f"{t.capitalize()}." for t in texts(0, 30)],
        "data/test/utt2spk": ["s"] * 30,
        "exp/st_xs/decode/merged/ctc_greedy/test/text": [
            f"{t.capitalize()}." for t in texts(4, 30)
        ],
    }
    for path, values in tables.items():
        rows = zip(ids, values, strict=True)
        files.write_text(path, "".join(f"{name} {value}\n" for name, value in rows))
    run_score("conf/train_st_xs.yaml")
    found = files.read_json("exp/st_xs/score/merged/ctc_greedy/test.json")
    assert set(found["inputs"]) == {path for path in tables if path != "data/test/text"}
    run_score("conf/train_st_xs.yaml")
    assert "up to date" in capsys.readouterr().out
    plain = ("--ref", "data/test/text.en", "--out", "other", "--target", "en")
    run_score("--hyp", "exp/st_xs/decode/merged/ctc_greedy/test/text", *plain)
    other, found = files.read_json("other/score.json")["score"], found["score"]
    assert other["metrics"]["bleu"] == found["metrics"]["bleu"]
    assert other["precisions"] == found["precisions"]
    assert other["precisions"][0] < 95
    lower = score_translations(
        pairs_of([t.lower() for t in texts(4, 30)]), "test", "ctc_greedy", "en"
    )
    bleu = found["metrics"]["bleu"]["value"]
    assert bleu != lower["metrics"]["bleu"]["value"]  # case and full stops count


def test_the_verb_names_a_missing_language(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text("conf/train_st_xs.yaml", "recipe: {task: st, target: en}\n")
    files.write_text("data/test/text.de", "a-1 ja\n")
    with pytest.raises(UserError, match=r"no data/test/text.en"):
        run_score("conf/train_st_xs.yaml", "--sets", "test")
    with pytest.raises(UserError, match="--target is for plain files"):
        run_score("conf/train_st_xs.yaml", "--target", "de")
