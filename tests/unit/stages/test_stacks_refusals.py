"""Wrong words, sets and options for stacks: one line that says what to do."""

import json
import shutil

import pytest

from espnet_ext.experiment import Experiment
from tests.fixtures import forked, probe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = probe.make(tmp_path_factory.mktemp("bad_stacks"), max_epoch=1)
    probe.train(folder)
    return folder


@pytest.fixture
def copy(recipe, tmp_path):
    folder = shutil.copytree(recipe, tmp_path / "egs/toy/probe1")
    shutil.copytree(recipe.parents[1] / "conf", tmp_path / "egs/conf")
    return folder


def refused(folder, *words):
    """Run a verb that must fail with one line and write nothing; return the line."""
    forked.load()
    files = {path for path in folder.rglob("*") if path.is_file()}
    ended = forked.Command(folder, words, folder.with_suffix(".logs")).wait(200)
    assert ended.code == 1, ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(f"espnet-ext {words[0]}: error: ")
    assert {path for path in folder.rglob("*") if path.is_file()} == files
    return lines[0]


PRUNE = ("prune", probe.CONFIG, "--score_set", "train", "--set", "test", "--repeats", "1")
WRITE = ("prune", "--model", probe.MODEL, "--out", "less", "--remove")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*WRITE, "4"), "no layer 4 in this whisper stack; its layers are 0, 1, 2, 3"),
        ((*WRITE, "-1"), "no layer -1 in this whisper stack"),
        ((*WRITE, "0", "1", "2", "3"), "all 4 layers asked to go; at least one must stay"),
        (("prune", "--remove", "1", "--out", "x"), "give a CONFIG, or --model"),
        (("prune", probe.CONFIG, "--remove", "1"), "leave out CONFIG, or these"),
        (
            ("similarity", "downloads/modell", "--k", "2"),
            "no model folder downloads/modell; a model of",
        ),
        (("similarity", "data", "--k", "2"), "data holds no model: neither config.json with"),
        (("similarity", "exp", "--k", "2"), "exp holds no model"),
        (
            ("similarity", "no model here", "--k", "2", "--name", "my run"),
            "the result's name 'my run': a name has no blank",
        ),
        ((*PRUNE, "--k", "2", "--name", "my run"), "the result's name 'my run': a name has no"),
        (("similarity", probe.MODEL, "--set", "tset"), "no set 'tset'; did you mean 'test'?"),
        (
            ("similarity", probe.MODEL, "--set", "test", "--k", "64"),
            "--k: 64 neighbours need more than 64 utterances, and test has 12; use a smaller k",
        ),
        (
            ("similarity", probe.MODEL, "--k", "2", "8", "--batch_size", "8"),
            "--k: 8 neighbours need more than 8 utterances in a batch; give a larger --batch_size",
        ),
        (("similarity", probe.MODEL, "--k", "2", "--seconds", "0"), "--seconds must be above 0"),
        ((*PRUNE, "--k", "64"), "more than 64 utterances, and train has 36; use a smaller k"),
        ((*PRUNE, "--k", "2", "--protect", "7"), "no layer 7 in this whisper stack"),
        ((*PRUNE, "--k", "2", "--protect", "1", "2", "3"), "all 4 layers are protected"),
        ((*PRUNE, "--k", "2", "--tags", "other"), "no exp/other/deploy/merged/model.pth; run"),
        ((*PRUNE[:3], "test", "--k", "2"), "--score_set and --set are both test"),
        (("fetch", "whisper_bas", "--out", "x"), "'whisper_bas'; did you mean 'whisper_base'?"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value[:30],
)
def test_wrong_words(recipe, words, says):
    assert says in refused(recipe, *words)


@pytest.mark.parametrize("conf", [{"upto": 2}, {"outputs": 2}], ids=str)
def test_a_probe_that_reads_other_outputs_than_the_last(tmp_path, conf):
    folder = probe.make(tmp_path, max_epoch=1, encoder_conf=conf)
    probe.train(folder)  # and deploys: several outputs are in what is verified there
    (option,) = conf
    line = refused(folder, *PRUNE, "--k", "2")
    assert f"with {option} a model reads other outputs than the last layer's" in line


def test_a_set_with_one_class(copy):
    labels = copy / "data/test/label"
    lines = [line.split()[0] + " low" for line in labels.read_text().splitlines()]
    labels.write_text("\n".join(lines) + "\n")
    line = refused(copy, *PRUNE, "--k", "2")
    assert "data/test/label: all 12 utterances are of the class low" in line


def test_a_class_that_the_probe_lacks(copy):
    labels = copy / "data/test/label"
    labels.write_text(labels.read_text().replace(" low", " deep"))
    assert "the class deep, which the probe was not trained on" in refused(copy, *PRUNE, "--k", "2")


def test_a_model_of_an_unknown_family(copy):
    config = copy / probe.MODEL / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "wav2vec3"}))
    line = refused(copy, "similarity", probe.MODEL, "--k", "2")
    assert "unknown model family 'wav2vec3'; did you mean 'wav2vec2'?" in line


def test_weights_of_another_shape_stop_a_training(copy):
    config = copy / probe.MODEL / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "encoder_ffn_dim": 40}))
    shutil.rmtree(copy / "exp")
    line = refused(copy, "train", probe.CONFIG, "--threads", "1")
    assert f"{probe.MODEL}: cannot load it" in line


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"remove": [9]}, "no layer 9 in this whisper stack"),
        ({"keep": [0, 9]}, "no layer 9 in this whisper stack"),
        ({"keep": []}, "all 4 layers asked to go"),
        ({"remove": [1], "keep": [0]}, "give remove or keep, not both"),
        ({"upto": 5}, "upto: 5 is not in 1..4"),
        ({"path": "nowhere"}, "no model folder nowhere"),
    ],
)
def test_options_of_the_encoder(recipe, monkeypatch, over, says):
    from espnet_ext.bridge.configs.check import examine
    from espnet_ext.config.training import load_config

    monkeypatch.chdir(recipe)
    config = load_config(probe.CONFIG)
    config.espnet["encoder_conf"] |= over
    (problem,) = examine(Experiment.of(config)).problems
    assert says in problem


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"normalize": "utterance_mvn"}, "frontend: raw needs normalize: null"),
        ({"frontend": "default"}, "encoder: stack reads samples: needs frontend: raw"),
    ],
)
def test_samples_must_reach_the_stack(recipe, monkeypatch, over, says):
    from espnet_ext.bridge.configs.check import examine
    from espnet_ext.config.training import load_config

    monkeypatch.chdir(recipe)
    config = load_config(probe.CONFIG)
    config.espnet.update(over)
    assert any(says in problem for problem in examine(Experiment.of(config)).problems)
