"""The card of a deployed model, as Hugging Face's hub reads it."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from espnet_ext.files import sha256_file, write_json
from tests.fixtures.a_run import run_verb
from tests.unit.results.pages.test_scores_translation import SCORE

DEPLOYED = Path("exp/hrf_xs/deploy/merged")
README = """# Toy

## Data

Two sets.

**Languages of the speech.** `{}` and
`{}`.

**Licence of the data.** GPL-2. Nothing of it
is here.
"""


def made() -> tuple[ModelCardData, str]:
    """The card that stage 8 writes: its metadata and its text."""
    run_verb("conf/train_hrf_xs.yaml")
    card = ModelCard.load(DEPLOYED / "README.md")
    assert isinstance(card.data, ModelCardData)
    return card.data, card.text


def test_the_hub_reads_language_licence_task_and_scores(recipe):
    (recipe / "README.md").write_text(README.format("cs", "nl"))
    data, text = made()
    assert data.language == ["cs", "nl"]
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "not-stated",
        "LICENSE.md",
    )
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert data.library_name == "espnet" and data.tags == ["espnet", "espnet-ext", "speech"]
    assert data.model_name == "hrf_xs"
    found = [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert found == [("toy test", "wer", pytest.approx(40)), ("toy unseen", "wer", 40)]
    assert (
        "Corpus: toy. Languages of the speech. `cs` and `nl`. Licence of the data. GPL-2." in text
    )
    licence = (DEPLOYED / "LICENSE.md").read_text()
    assert "GPL-2. Nothing of it is here." in licence
    assert "`egs/toy/asr1/README.md` (section Data, commit abc1234)" in licence


def test_a_translation_has_the_languages_of_both_sides(recipe):
    (recipe / "README.md").write_text(README.format("cs", "nl"))
    for path in Path("exp/hrf_xs/score/merged/ctc_greedy").glob("*.json"):
        read = (f"exp/hrf_xs/decode/merged/ctc_greedy/{path.stem}/text", f"data/{path.stem}/text")
        inputs = {file: sha256_file(file) for file in read}
        score = SCORE | {"set": path.stem, "target": "zh-CN"}
        write_json(path, {"score": score, "inputs": inputs})
    data, text = made()
    assert data.language == ["cs", "nl", "zh"]
    assert "`cs` and `nl`. Translated into `zh-CN`. Licence of the data." in text
    assert {result.metric_type for result in data.eval_results} == {"bleu"}


def test_what_a_recipe_does_not_state_is_not_guessed(recipe):
    data, text = made()
    assert data.language is None and data.license == "other"
    assert "Corpus: toy. Languages of the speech: not stated. Licence: not stated." in text
    (recipe / "README.md").write_text("**Language of the speech.** What `--source` names.\n")
    data, text = made()
    assert data.language is None and "What `--source` names." in text
