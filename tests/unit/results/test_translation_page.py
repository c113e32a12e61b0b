"""Runs of speech translation in the report: BLEU and chrF in place of WER and CER."""

import copy
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.files import read_json, sha256_file, write_json
from espnet_ext.results.pages.translation import score_line, verdict
from espnet_ext.results.schema import TRANSLATION_SCORE, validate
from tests.fixtures.a_run import edit, run_verb

SIGNATURE = "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
SCORE = {
    "set": "test",
    "method": "ctc_greedy",
    "target": "en",
    "utterances": 20,
    "speakers": 4,
    "words": 100,
    "bootstrap": {"resamples": 1000, "seed": 12345, "confidence": 0.95},
    "bleu": {
        "value": 12.34,
        "interval": [10.0, 14.5],
        "brevity_penalty": 0.91,
        "precisions": [40.0, 20.0, 10.0, 4.0],
        "signature": SIGNATURE,
    },
    "chrf": {"value": 33.3, "interval": [30.0, 36.0], "signature": "chrF2"},
    "baseline": {
        "tag": "base_xs",
        "bleu_difference": 1.5,
        "bleu_p": 0.02,
        "chrf_difference": -0.4,
        "chrf_p": 0.3,
    },
}


@pytest.fixture
def translating(recipe):
    """The run hrf_xs as one of translation; its scores are of BLEU."""
    for path in Path("exp/hrf_xs/score/merged/ctc_greedy").glob("*.json"):
        name = path.stem
        read = (f"exp/hrf_xs/decode/merged/ctc_greedy/{name}/text", f"data/{name}/text")
        inputs = {file: sha256_file(file) for file in read}
        write_json(path, copy.deepcopy(SCORE) | {"set": name, "inputs": inputs})
    return recipe


def test_report_prints_bleu_and_publishes_it(translating, capsys):
    validate(SCORE, TRANSLATION_SCORE, "score")
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    told = capsys.readouterr().out
    assert "test BLEU (95 % CI)" in told and "WER" not in told
    assert "12.3 (10.0-14.5)" in told
    assert "BLEU better than base_xs (+1.5, p 0.020)" in told
    assert "chrF not told apart from base_xs (-0.4, p 0.300)" in told
    assert Path("exp/hrf_xs/images/bleu_bytes.png").is_file()
    root = translating.parents[2]
    page = (root / "RESULTS.md").read_text()
    assert "40.0/20.0/10.0/4.0" in page and SIGNATURE in page
    assert "![BLEU against bytes](results/toy_asr1/bleu_bytes.svg)" in page
    assert (root / "results/toy_asr1/bleu_bytes.svg").is_file()
    published = read_json(root / "results/toy_asr1/hrf_xs.json")
    assert published["scores"][0] == SCORE | {"set": published["scores"][0]["set"]}
    (root / "RESULTS.md").unlink()
    run_verb("--all")
    assert (root / "RESULTS.md").read_text() == page


def test_a_score_that_lacks_its_signature_is_refused(translating):
    path = "exp/hrf_xs/score/merged/ctc_greedy/test.json"
    edit(path, lambda score: score["bleu"].pop("signature"))
    with pytest.raises(UserError, match=r"test.json: missing key bleu.signature"):
        run_verb("conf/train_hrf_xs.yaml")


def test_no_baseline_and_no_interval_are_said():
    alone = copy.deepcopy(SCORE) | {"baseline": None}
    alone["bleu"]["interval"] = None
    assert "12.3 (no interval)" in score_line(alone)
    equal = copy.deepcopy(SCORE)
    equal["baseline"] |= {"bleu_difference": 0.0, "bleu_p": None}
    assert verdict(equal, "bleu") == "equal"
