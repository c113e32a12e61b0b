"""A probe of a stack by the recipe's stages, the similarity of its layers, its pruning."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import espnet_ext
from espnet_ext.data.kaldi_dir import read_table
from tests.fixtures import probe, speech_models

K = ("--k", "2", "4")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = probe.make(tmp_path_factory.mktemp("probe"))
    probe.train(folder)
    probe.run(folder, "decode", probe.CONFIG, "--sets", "test", "--nj", "1")
    probe.run(folder, "score", probe.CONFIG, "--sets", "test")
    return folder


@pytest.fixture(scope="module")
def pruned(recipe):
    words = ("--score_set", "train", "--set", "test", "--batch_size", "16", "--repeats", "3")
    probe.run(recipe, "prune", probe.CONFIG, *words, *K, "--time", "mean")
    return json.loads((recipe / "exp/pruning/probe_test.json").read_text())


def accuracy(recipe):
    named = read_table(recipe / "exp/probe/decode/merged/classify/test/text")
    meant = read_table(recipe / "data/test/label")
    return np.mean([named[key] == label for key, label in meant.items()])


def test_the_probe_learns_and_the_stack_does_not(recipe):
    assert accuracy(recipe) > 0.6
    state = torch.load(recipe / "exp/probe/deploy/merged/model.pth", weights_only=True)
    from safetensors.torch import load_file

    whole = load_file(recipe / probe.MODEL / "model.safetensors")
    stack = {k: v for k, v in state.items() if k.startswith("encoder.stack.model.")}
    assert len(stack) > 50
    for key, value in stack.items():
        assert torch.equal(value, whole[f"encoder.{key.removeprefix('encoder.stack.model.')}"]), key


def test_stage_five_writes_the_stack_in_its_own_format(recipe):
    from transformers import AutoModel

    folder = recipe / "exp/probe/deploy/merged/stack"
    assert len(AutoModel.from_pretrained(folder).encoder.layers) == speech_models.LAYERS
    deployed = json.loads((recipe / "exp/probe/deploy/merged/deploy.json").read_text())
    assert deployed["verified"]["max_difference"] <= 1e-5
    assert 0 < deployed["parameters"]["encoder_blocks"] < deployed["parameters"]["encoder"]


def test_graphs_of_the_probe_name_torchs_classes(recipe):
    said = probe.run(recipe, "export", probe.CONFIG, "--out", "onnx").stdout
    assert "18 of 18 texts are torch's" in said
    found = espnet_ext.load(recipe / "onnx")
    named = read_table(recipe / "exp/probe/decode/merged/classify/test/text")
    audio = read_table(recipe / "data/test/wav.scp")
    assert len(named) == 12 and len(set(named.values())) > 1
    for key, label in named.items():
        assert found.file(recipe / audio[key]).text == label


def test_the_deployed_probe_needs_no_other_folder(recipe, monkeypatch):
    from espnet_ext.analysis.layers import load_probe

    monkeypatch.chdir(recipe)
    Path(probe.MODEL).rename("elsewhere")
    try:
        _, classes = load_probe(Path("exp/probe/deploy/merged"))
    finally:
        Path("elsewhere").rename(probe.MODEL)
    assert classes == sorted(probe.PITCHES)


def test_similarity(recipe):
    words = ("--set", "train", "--batch_size", "16", *K)
    probe.run(recipe, "similarity", probe.MODEL, *words, "--publish", "--allow-dirty")
    record = json.loads((recipe / "exp/similarity/model_train.json").read_text())
    assert record["batches"] == 2
    assert record["utterances"] == 32
    for name in ("cosine", "cka", "knn"):
        matrix = np.array(record[name])
        assert matrix.shape == (4, 4)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-9)
        assert len(record["blocks"][name]["first_layers"]) == 1
    both = np.mean([record["knn_by_k"][k] for k in ("2", "4")], axis=0)
    np.testing.assert_allclose(record["knn"], both)
    root = recipe.parents[2]
    page = (root / "results/toy_probe1/README.md").read_text()
    assert "### Similarity of layers: model_train" in page
    assert (root / "results/toy_probe1/similarity/model_train.svg").is_file()
    assert (recipe / "exp/similarity/model_train.png").stat().st_size > 10000


def test_neighbours_fit_a_small_set(recipe):
    probe.run(recipe, "similarity", probe.MODEL, "--set", "test", "--name", "small")
    record = json.loads((recipe / "exp/similarity/small.json").read_text())
    assert record["k"] == [2, 4, 8]
    assert record["batch_size"] == record["utterances"] == 12


def test_the_curve_begins_where_the_probe_is(recipe, pruned):
    assert pruned["full"] == pytest.approx(accuracy(recipe))
    assert pruned["chance"] == pytest.approx(1 / 3)
    assert pruned["repeats"] == 3
    assert [order["order"] for order in pruned["orders"]] == [
        "backward",
        "forward",
        "bi_cosine",
        "bi_knn",
    ]
    for order in pruned["orders"]:
        points = order["points"]
        assert [point["removed"] for point in points] == [0, 1, 2, 3]
        assert points[0]["value"] == pruned["full"]
        sizes = [point["parameters"] for point in points]
        assert sizes[0] - sizes[1] == sizes[1] - sizes[2] == sizes[3] > 0
        for sequence in order["sequences"]:
            assert sorted(sequence) == [1, 2, 3]
    assert pruned["orders"][0]["sequences"][0] == [3, 2, 1]
    assert pruned["orders"][1]["sequences"][0] == [1, 2, 3]


def test_a_point_of_the_curve_is_what_the_smaller_model_scores(recipe, pruned, monkeypatch):
    """By the recipe's own stages, from a config that leaves the layers out."""
    from espnet_ext.analysis.layers import load_probe, read_waves

    monkeypatch.chdir(recipe)
    order = pruned["orders"][0]
    model, classes = load_probe(Path("exp/probe/deploy/merged"))
    meant = read_table("data/test/label")
    waves = read_waves(list(read_table("data/test/wav.scp").items()))
    for count in (1, 3):
        model.encoder.stack = model.encoder.stack.remove(order["sequences"][0][:count])
        with torch.no_grad():
            best = [
                model.score(w.unsqueeze(0), torch.tensor([len(w)])).argmax().item() for w in waves
            ]
        right = np.mean(
            [classes[i] == label for i, label in zip(best, meant.values(), strict=True)]
        )
        assert order["points"][count]["value"] == pytest.approx(right)
        model, classes = load_probe(Path("exp/probe/deploy/merged"))


def test_bands_and_share(pruned):
    for order in pruned["orders"]:
        values = [point["value"] for point in order["points"]]
        enough = [value >= 0.95 * pruned["full"] for value in values]
        assert order["removable"] == (enough + [False]).index(False) - 1
        for point in order["points"]:
            low, high = point["interval"]
            assert 0 <= low <= high <= 1
    assert any(p["interval"][0] < p["interval"][1] for o in pruned["orders"] for p in o["points"])


def test_a_smaller_model_is_written(recipe):
    from transformers import AutoModel

    said = probe.run(recipe, "prune", "--model", "exp/probe", "--remove", "1", "2", "--out", "less")
    assert "2 layers left of the model's: 0, 3" in said.stdout
    assert len(AutoModel.from_pretrained(recipe / "less").encoder.layers) == 2
    shutil.rmtree(recipe / "less")


def test_a_config_without_some_layers(recipe, monkeypatch):
    from espnet_ext.bridge.build import build_model
    from espnet_ext.config.training import load_config
    from espnet_ext.experiment import Experiment

    monkeypatch.chdir(recipe)
    config = load_config(probe.CONFIG)
    experiment = Experiment.of(config)
    conf = config.espnet["encoder_conf"]
    whole = build_model(experiment).encoder
    for options, kept in (({"remove": [1]}, (0, 2, 3)), ({"keep": [0, 3]}, (0, 3))):
        config.espnet["encoder_conf"] = {**conf, **options}
        assert build_model(experiment).encoder.stack.kept == kept
    config.espnet["encoder_conf"] = {**conf, "upto": 2, "frozen": False}
    part = build_model(experiment).encoder
    waves, lengths = speech_models.speech(4000, 3000)
    found, frames, _ = part(waves.unsqueeze(-1), lengths)
    x, _ = whole.stack.front(waves, lengths)
    torch.testing.assert_close(found, whole.stack.hidden(x, frames)[1])
    assert found.requires_grad
    assert not whole(waves.unsqueeze(-1), lengths)[0].requires_grad
    assert whole.train()(waves.unsqueeze(-1), lengths)[0].shape == found.shape
    assert not whole.stack.training
