"""Wrong configs and options, missing stages: one line, a non-zero exit, nothing lost."""

import re

import pytest
import torch

from tests.fixtures.finished import CONFIG, VERBS, change, complains

WRONG_CONFIGS = [
    ({"batch_bin": 1}, "unknown key 'batch_bin'; did you mean 'batch_bins'?"),
    ({"encoder": "hrf_confromer"}, "unknown encoder 'hrf_confromer'; did you mean 'hrf_conformer'"),
    ({"encoder_conf": {"num_block": 2}}, "'num_block'; did you mean 'num_blocks'?"),
    ({"encoder_conf": {"hrf": {"ratoi": 2}}}, "'ratoi'; did you mean 'ratio'?"),
    ({"recipe": {"variant": "merge"}}, "unknown variant 'merge'; did you mean 'merged'?"),
    ({"recipe": {"averages": 2}}, "recipe: unknown key 'averages'; did you mean 'average'?"),
    ({"recipe": {"decode": {"ctc_gready": {}}}}, "'ctc_gready'; did you mean 'ctc_greedy'?"),
    ({"recipe": {"decode": {"ctc_att_beam": {"beamsize": 1}}}}, "did you mean 'beam_size'?"),
    ({"optim_conf": {"lr": -1.0}}, "Invalid learning rate"),
]


@pytest.mark.parametrize(("over", "says"), WRONG_CONFIGS, ids=lambda v: None)
def test_wrong_config_is_refused_before_training(copy, over, says):
    folder = copy("exp")
    change(folder, **over)
    line = complains(folder, VERBS["train"])
    assert says in line
    assert "train_tiny.yaml" in line
    assert not (folder / "exp").exists()


@pytest.mark.parametrize(("over", "says"), WRONG_CONFIGS[6:8], ids=lambda v: None)
def test_wrong_decode_method_or_option(copy, over, says):
    folder = copy("exp/tiny/decode")
    change(folder, **over)
    assert says in complains(folder, VERBS["decode"])


def test_unknown_variant(copy):
    line = complains(copy(), (*VERBS["deploy"], "--variant", "mergd"))
    assert line == "unknown variant 'mergd'; known is: merged" or "did you mean 'merged'?" in line


def test_another_config_under_the_same_tag(copy):
    folder = copy("exp/tiny/.train.done.json")
    change(folder, encoder_conf={"linear_units": 32})
    line = complains(folder, VERBS["train"])
    assert "exp/tiny holds a run of other settings" in line


# -- options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--max_epok", "1"), "unknown option '--max_epok'; did you mean '--max_epoch'?"),
        (("--max_epoch", "one"), "--max_epoch: invalid int value: 'one'"),
        (("--encoder", "confromer"), "--encoder: invalid choice: 'confromer'"),
        (("--output_dir", "elsewhere"), "--output_dir is not allowed after --"),
        (("--resume=false",), "--resume is not allowed after --"),
        (("--ngpu", "1"), "give --ngpu before --"),
        (("stray",), "unknown option 'stray'"),
    ],
)
def test_wrong_option_for_espnet(copy, words, says):
    folder = copy("exp")
    line = complains(folder, (*VERBS["train"], "--", *words))
    assert says in line
    assert len(line) < 300
    assert not (folder / "exp").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(copy):
    line = complains(copy("exp"), (*VERBS["train"], "--ngpu", "1"))
    assert "torch sees no GPU here" in line


@pytest.mark.parametrize(
    ("device", "says"), [("cuda", "here are: cpu"), ("tpu", "device tpu: "), ("cuda:x", "cuda:x")]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(copy, device, says):
    line = complains(copy("exp/tiny/decode"), (*VERBS["decode"], "--device", device))
    assert line.startswith(f"device {device}: ")
    assert says in line


# -- missing output of a stage


@pytest.mark.parametrize(
    ("verb", "missing", "stage"),
    [
        ("features", "data/*", 1),
        ("tokens", "data/*", 1),
        ("train", "data/dev/text", 1),
        ("train", "dump", 2),
        ("train", "data/token_list", 3),
        ("deploy", "exp/tiny/*.ave*.pth", 4),
        ("deploy", "exp/tiny/config.yaml", 4),
        ("deploy", "data/dev", 1),
        ("decode", "exp/tiny/deploy", 5),
        ("decode", "dump", 2),
        ("decode", "data/*", 1),
        ("score", "exp/tiny/decode", 6),
        ("score", "data/test", 1),
        ("report", "exp/tiny/train.json", 4),
        ("report", "exp/tiny/deploy", 5),
        ("report", "exp/tiny/decode", 6),
        ("report", "exp/tiny/score", 7),
    ],
)
def test_a_missing_stage_is_named(copy, verb, missing, stage):
    # Its own work has to be undone: what is up to date needs nothing.
    own = {"train": "exp/tiny/.train*", "deploy": "exp/tiny/deploy", "decode": "exp/tiny/decode"}
    folder = copy(missing, *([own[verb]] if verb in own else []))
    line = complains(folder, VERBS[verb])
    assert re.search(rf"(--|\b)stages? {stage}\b", line), line


def test_an_unknown_set(copy):
    line = complains(copy(), ("decode", CONFIG, "--sets", "tset"))
    assert "no set 'tset'; did you mean 'test'?" in line
