"""Runs of speech translation in the report: BLEU and chrF in place of WER and CER."""

import copy
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.files import read_json, sha256_file, write_json
from espnet_ext.results.pages.scores import score_lines
from espnet_ext.results.schema import TranslationScore
from espnet_ext.validation import parse
from tests.fixtures.a_run import edit, run_verb

SIGNATURE = "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
SCORE = {
    "task": "st",
    "set": "test",
    "method": "ctc_greedy",
    "speakers": 4,
    "bootstrap": {"resamples": 1000, "seed": 12345, "confidence": 0.95},
    "metrics": {
        "bleu": {"value": 12.34, "interval": [10.0, 14.5]},
        "chrf": {"value": 33.3, "interval": [30.0, 36.0]},
    },
    "comparisons": [
        {"metric": "bleu", "baseline": "base_xs", "difference": 1.5, "interval": None, "p": 0.02},
        {"metric": "chrf", "baseline": "base_xs", "difference": -0.4, "interval": None, "p": 0.3},
    ],
    "target": "en",
    "utterances": 20,
    "words": 100,
    "brevity_penalty": 0.91,
    "precisions": [40.0, 20.0, 10.0, 4.0],
    "signatures": {"bleu": SIGNATURE, "chrf": "chrF2"},
}


@pytest.fixture
def translating(recipe):
    """The run hrf_xs as one of translation; its scores are of BLEU."""
    for path in Path("exp/hrf_xs/score/merged/ctc_greedy").glob("*.json"):
        name = path.stem
        read = (f"exp/hrf_xs/decode/merged/ctc_greedy/{name}/text", f"data/{name}/text")
        inputs = {file: sha256_file(file) for file in read}
        write_json(path, {"score": SCORE | {"set": name}, "inputs": inputs})
    return recipe


def test_report_prints_bleu_and_publishes_it(translating, capsys):
    parse(TranslationScore, SCORE, "score")
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    said = capsys.readouterr().out
    assert "BLEU (95 % CI)" in said and "WER" not in said
    assert "12.3 (10.0-14.5)" in said
    assert "BLEU better than base_xs (+1.5; p 0.020)" in said
    assert "chrF inconclusive against base_xs (-0.4; p 0.300): p is not below 0.05" in said
    assert Path("exp/hrf_xs/images/bleu_bytes.png").is_file()
    root = translating.parents[2]
    page = (root / "results/toy_asr1/README.md").read_text()
    assert "40.0/20.0/10.0/4.0" in page and SIGNATURE in page
    assert "](bleu_bytes.svg)" in page
    assert "(results/toy_asr1/bleu_bytes.svg)" in (root / "RESULTS.md").read_text()
    assert (root / "results/toy_asr1/bleu_bytes.svg").is_file()
    published = read_json(root / "results/toy_asr1/hrf_xs.json")
    assert published["scores"][0] == SCORE | {"set": published["scores"][0]["set"]}
    (root / "results/toy_asr1/README.md").unlink()
    run_verb("--all")
    assert (root / "results/toy_asr1/README.md").read_text() == page


def test_a_score_that_lacks_its_signature_is_refused(translating):
    path = "exp/hrf_xs/score/merged/ctc_greedy/test.json"
    edit(path, lambda file: file["score"].pop("signatures"))
    with pytest.raises(UserError, match=r"test.json: missing key score.signatures"):
        run_verb("conf/train_hrf_xs.yaml")


def test_no_baseline_and_no_interval_are_said():
    alone = copy.deepcopy(SCORE) | {"comparisons": []}
    alone["metrics"]["bleu"]["interval"] = None
    (line,) = score_lines(parse(TranslationScore, alone, "score"))
    assert "12.3 (no interval)" in line
    equal = copy.deepcopy(SCORE)
    equal["comparisons"][0] |= {"difference": 0.0, "interval": [0.0, 0.0], "p": None}
    found = parse(TranslationScore, equal, "score").compared("bleu")
    assert found.verdict() == "equal"
    assert found.sentence() == "BLEU equal to base_xs (+0.0; 95 % interval +0.0 to +0.0)"
