"""What a config says of a pretrained recogniser, refused where it does not fit."""

from pathlib import Path

import pytest

from espnet_ext.config.pretrained import pretrained_files, token_source
from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

ESPNET = {
    "frontend": "raw",
    "normalize": None,
    "encoder": "stack",
    "encoder_conf": {"path": "model"},
    "decoder": "whisper",
    "decoder_conf": {"path": "model"},
    "token_type": "hugging_face",
    "model_conf": {"ctc_weight": 0.0},
}


def config(decode=None, fetch=None, **over):
    recipe = Recipe(decode=decode or {"attention_greedy": {}}, fetch=fetch)
    return Config(Path("conf/train_x.yaml"), "x", recipe, {**ESPNET, **over})


def test_a_whole_model_has_no_problem():
    assert recipe_problems(config()) == []
    assert recipe_problems(config({"ctc_att_beam": {"ctc_weight": 0, "beam_size": 4}})) == []


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            config(token_type="bpe"),
            "decoder: whisper needs the tokens of its model: token_type: hugging",
        ),
        (
            config(decoder_conf={}, encoder_conf={}),
            "token_type: hugging_face needs a pretrained model: give decoder_conf: path",
        ),
        (config(decoder="transformer"), "attention_greedy needs decoder: whisper"),
        (config({"attention_greedy": {"tokens_per_second": 0}}), "must be a number above 0, not 0"),
        (config({"attention_greedy": {"batch_size": 0}}), "whole number of at least 1, not 0"),
        (config({"attention_greedy": {"beam_size": 2}}), "unknown key 'beam_size'"),
        (config({"ctc_att_beam": {"ctc_weight": 0.3}}), "needs CTC, but model_conf: ctc_weight"),
    ],
)
def test_what_does_not_fit_is_one_line(made, says):
    (found,) = recipe_problems(made)
    assert says in found


def test_a_variant_is_compared_with_others_of_its_run_or_of_another():
    def problems(**variants):
        recipe = Recipe(decode={"attention_greedy": {}}, variants=variants)
        return recipe_problems(Config(Path("conf/train_x.yaml"), "x", recipe, ESPNET))

    assert problems(a=None, b="a", c=["b", "a"], d=["other/b", "x/a", "a"]) == []
    assert "a is compared with nothing" in problems(a=[])[0]
    assert "a is compared with itself" in problems(a="x/a")[0]
    assert ["which is no TAG/VARIANT" in one for one in problems(a=["/", "b/"])] == [True, True]
    (one,) = problems(a="a", b=None)
    (two,) = problems(first=None, b=["first", "frist"])
    assert "a is compared with 'a'" in one and "did you mean 'first'" in two


def test_tokens_are_those_of_the_decoder_else_of_the_encoder():
    assert token_source({"decoder_conf": {"path": "a"}, "encoder_conf": {"path": "b"}}) == "a"
    assert token_source({"decoder_conf": {}, "encoder_conf": {"path": "b"}}) == "b"
    assert token_source({"decoder_conf": None}) is None
    made = Experiment.of(config(decoder_conf={"path": "hub:some/whisper-tiny"}))
    assert made.token_folder == Path("data/token_list/whisper-tiny")


def test_files_of_both_decide_the_training_each_once(tmp_path):
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert pretrained_files(config(), tmp_path) == [tmp_path / "model/config.json"]
    for number in "12":  # of a large model
        (tmp_path / f"other/model-0000{number}-of-00002.safetensors").touch()
    both = config(decoder_conf={"path": "other"})
    found = pretrained_files(both, tmp_path)
    names = ["other/model-00001-of-00002.safetensors", "other/model-00002-of-00002.safetensors"]
    whole = ["model/config.json", "other/config.json", *names]
    assert found == [tmp_path / name for name in whole]
    assert pretrained_files(config(decoder_conf={"path": "hub:x"}), tmp_path) == found[:1]
    for fetch, advice in ((None, "give the path of one in decoder_conf"), ("x", "run stage 2")):
        with pytest.raises(UserError, match=f"no pretrained model absent; {advice}"):
            pretrained_files(config(fetch=fetch, decoder_conf={"path": "absent"}), tmp_path)
