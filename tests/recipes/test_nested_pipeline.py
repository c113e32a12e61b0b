"""A family through the stages: trained, a member taken out, decoded by stock ESPnet."""

import json

import pytest
import torch
import yaml

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.methods.quantise import fake_quantise
from tests.fixtures import forked, miniature
from tests.fixtures.finished import CONFIG, VERBS
from tests.fixtures.stock import stock_decoding

NESTED = {"depths": [2, 1], "widths": [24, 12], "bits": [32, 4], "sample": 5}
SMALL = "1L-12-32b"
PACKED = "2L-24-4b"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose family is trained, with one member deployed and decoded."""
    folder = tmp_path_factory.mktemp("nested")
    made = miniature.make_with_data(
        folder,
        encoder="nested_conformer",
        encoder_conf={"nested": NESTED},
        best_model_criterion=[["valid", "cer_ctc_mean", "min"]],
        max_epoch=16,
        recipe={"average_by": "valid.cer_ctc_mean"},
    )
    config = yaml.safe_load((made / CONFIG).read_text())
    del config["encoder_conf"]["hrf"]
    (made / CONFIG).write_text(yaml.safe_dump(config))
    forked.load()
    for verb in ("features", "tokens", "train", "deploy", "decode"):
        chosen = ("--variant", SMALL) if verb in ("deploy", "decode") else ()
        ended = forked.Command(made, (*VERBS[verb], *chosen), folder / "logs").wait(1200)
        assert ended.code == 0, ended.stdout + ended.stderr
    return made


def test_stock_espnet_decodes_the_smallest_member(recipe):
    deployed = recipe / "exp/tiny/deploy" / SMALL
    conf = yaml.safe_load((deployed / "config.yaml").read_text())
    assert conf["encoder"] == "conformer"
    assert (conf["encoder_conf"]["num_blocks"], conf["encoder_conf"]["linear_units"]) == (1, 12)
    assert "nested" not in conf["encoder_conf"]
    stock = stock_decoding(recipe, f"exp/tiny/deploy/{SMALL}", ("test",))
    assert stock["modules"] == []
    assert stock["kinds"] == ["espnet2", "torch"]
    for method, texts in stock["texts"].items():
        own = read_table(recipe / "exp/tiny/decode" / SMALL / method / "test/text")
        assert texts["test"] == own
        assert len(set(own.values())) > 1  # equal for a reason


def test_a_packed_member_goes_through_all_stages(recipe):
    from espnet_ext.formats.packed import dequantised, read_member

    for verb in ("deploy", "decode", "score", "report"):
        words = (*VERBS[verb], "--variant", PACKED)
        ended = forked.Command(recipe, words, recipe / "logs").wait(600)
        assert ended.code == 0, ended.stdout + ended.stderr
    deployed = recipe / "exp/tiny/deploy" / PACKED
    assert not (deployed / "model.pth").exists()
    size = (deployed / "model.safetensors").stat().st_size
    result = json.loads((recipe / f"exp/tiny/result_{PACKED}.json").read_text())
    assert result["bytes"] == size
    whole = recipe / "exp/tiny/valid.cer_ctc_mean.ave_2best.pth"
    assert size < whole.stat().st_size / 2
    name = "encoder.encoders.1.feed_forward.w_1"
    average = torch.load(whole, weights_only=True)[f"{name}.parametrizations.weight.original"]
    state = dequantised(read_member(deployed / "model.safetensors"))
    assert torch.equal(state[f"{name}.weight"], fake_quantise(average, 4))
    references = read_table(recipe / "data/test/text")
    for method in ("ctc_greedy", "ctc_att_beam"):
        texts = read_table(recipe / "exp/tiny/decode" / PACKED / method / "test/text")
        assert list(texts) == list(references)
    again = forked.Command(recipe, (*VERBS["decode"], "--variant", PACKED), recipe / "logs").wait()
    assert "up to date" in again.stdout


def test_the_family_goes_into_one_file(recipe):
    from espnet_ext.bridge.deployed.family import load

    for words in (("--variant", PACKED), ("--family",)):
        ended = forked.Command(recipe, (*VERBS["deploy"], *words), recipe / "logs").wait(600)
        assert ended.code == 0, ended.stdout + ended.stderr
    assert "8 members" in ended.stdout
    path = recipe / "exp/tiny/deploy/family/family.safetensors"
    packed = (recipe / "exp/tiny/deploy" / PACKED / "model.safetensors").stat().st_size
    model, entry = load(path, depth=2, max_bytes=packed)
    assert entry.member.name == PACKED and entry.bytes == packed
    assert sum(p.numel() for p in model.parameters()) > 1000


def test_what_was_deployed_is_a_part_of_what_was_trained(recipe):
    summary = json.loads((recipe / f"exp/tiny/deploy/{SMALL}/deploy.json").read_text())
    assert summary["verified"]["max_difference"] <= 1e-5
    assert summary["encoder_compression"] > 2
    state = torch.load(recipe / f"exp/tiny/deploy/{SMALL}/model.pth", weights_only=True)
    average = torch.load(recipe / "exp/tiny/valid.cer_ctc_mean.ave_2best.pth", weights_only=True)
    whole = average["encoder.encoders.0.feed_forward.w_1.parametrizations.weight.original"]
    assert torch.equal(state["encoder.encoders.0.feed_forward.w_1.weight"], whole[:12])
    own = average["encoder.encoders.0.conv_module.norm.statistics.12-32b.running_mean"]
    assert torch.equal(state["encoder.encoders.0.conv_module.norm.running_mean"], own)


def test_every_step_was_counted_and_every_member_validated(recipe):
    state = torch.load(recipe / "exp/tiny/checkpoint.pth", weights_only=True)
    epochs = state["reporter"]["stats"]
    assert int(state["model"]["encoder.encoders.steps"]) == epochs[16]["train"]["total_count"] > 16
    for name in ("2L-24-32b", "2L-12-4b", SMALL, "mean"):
        assert f"cer_ctc_{name}" in epochs[16]["valid"]
    train = epochs[16]["train"]
    assert {"loss_largest", "loss_smallest", "loss_others", "kl_ctc", "kl_decoder"} <= set(train)
    assert epochs[16]["train"]["loss"] < epochs[1]["train"]["loss"]


def test_a_member_that_the_family_lacks_is_one_line(recipe):
    ended = forked.Command(
        recipe, (*VERBS["deploy"], "--variant", "1L-12-16b"), recipe / "logs"
    ).wait()
    assert ended.code == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert "1L-12-16b" in lines[0]
    assert "did you mean '1L-12-" in lines[0]
    assert not (recipe / "exp/tiny/deploy/1L-12-16b").exists()
