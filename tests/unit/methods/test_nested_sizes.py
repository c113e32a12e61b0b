"""Sizes of a family that the verbs print: at the paper's size, and every member of a small one."""

import argparse
import json
from pathlib import Path

import pytest

from espnet_ext.config.training import Config, Recipe, load_config
from espnet_ext.experiment import Experiment

# ESPnet's Conformer for Switchboard, on which arXiv 2406.10160 builds: 44.527 M, published 44.53.
PAPER = {
    "encoder": "nested_conformer",
    "encoder_conf": {
        "output_size": 256,
        "attention_heads": 4,
        "linear_units": 2048,
        "num_blocks": 12,
        "macaron_style": True,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 31,
        "nested": {"depths": [12, 8], "widths": [2048, 1024], "bits": [32, 8, 4]},
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 4, "linear_units": 2048, "num_blocks": 6},
    "model_conf": {"ctc_weight": 0.2},
    "input_size": 80,
    "normalize": None,
}
EGS = Path(__file__).resolve().parents[3] / "egs"
CONFIGS = EGS / "fotaq/asr1/conf/nested"


def test_footprint_at_the_papers_size():
    from espnet_ext.bridge.configs.footprint import measure
    from espnet_ext.cli.footprint import table

    config = Config(Path("paper.yaml"), "paper", Recipe(), PAPER)
    found = measure(Experiment.of(config, "12L-1024-4b"), 2000)
    assert found["training_parameters"]["total"] == 44_527_008
    # Each layer lacks half of both feed-forward networks.
    removed = 12 * 2 * (2 * 256 * 1024 + 1024)
    assert found["parameters"]["total"] == 44_527_008 - removed
    assert found["encoder_compression"] == pytest.approx(12.83, abs=0.005)
    assert "encoder blocks: 12.83 times fewer bits" in table(found)
    rounded = 12 * 1_580_800
    nominal = rounded / 2 + 4 * (found["parameters"]["total"] - rounded)
    assert nominal < found["bytes"] < 1.01 * nominal


def test_norms_of_the_training_model_are_counted_as_norms():
    from espnet_ext.bridge.configs.footprint import measure

    path = EGS / "librispeech_100/asr1/conf/train_nested_conformer_paper.yaml"
    found = measure(Experiment.of(load_config(path)))
    assert found["training_parameters"] == found["parameters"]
    assert found["parameters"]["encoder_blocks"] == 31_638_528
    assert found["parameters"]["encoder_norms"] == 36_864


def test_committed_families_count_as_many_norms_a_layer_in_both_models():
    checked = 0
    for path in sorted((EGS.parent / "results").rglob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if not str(result.get("encoder")).startswith("nested_"):
            continue
        layers = int(result["variant"].partition("L")[0])
        trained, deployed = result["training"]["parameters"], result["parameters"]
        blocks = result["config"]["encoder_conf"]["num_blocks"]
        assert trained["encoder_norms"] / blocks == deployed["encoder_norms"] / layers, path
        checked += 1
    assert checked >= 33


def test_variants_lists_every_member(capsys, monkeypatch):
    from espnet_ext.cli import variants

    monkeypatch.chdir(CONFIGS.parent)
    variants.run(argparse.Namespace(config=CONFIGS / "train_nested_conformer_xs.yaml"))
    header, *printed = capsys.readouterr().out.splitlines()
    assert header.split() == ["variant", "parameters", "bytes", "encoder"]
    lines = {line.split()[0]: line for line in printed}
    names = [f"{depth}L-384-{bits}b" for depth in (6, 4, 2) for bits in (32, 8, 4)]
    assert ["merged", *names] == [name for name in lines if "+" not in name]
    assert lines["6L-384-32b"].endswith(" 1.00 x")
    assert "(recipe: variant)" in lines["merged"]
    size = {name: int(line.split()[2].replace(",", "")) for name, line in lines.items()}
    assert size["6L-384-32b"] > size["6L-384-8b"] > size["6L-384-4b"] > size["2L-384-4b"]
    for name in names:
        ratio = float(lines[name].split()[3])
        assert ratio == pytest.approx(6 / int(name[0]) * 32 / int(name[7:-1]), rel=0.3)


def test_a_members_own_training_has_its_size():
    """The configs of systems trained alone build what the family gives."""
    from espnet_ext.bridge.build import build_model
    from espnet_ext.methods.deploy import deploy, parameter_count

    family = build_model(Experiment.of(load_config(CONFIGS / "train_nested_conformer_xs.yaml")))
    for depth in (6, 4, 2):
        for bits in (32, 8, 4):
            suffix = "" if bits == 32 else f"_{bits}b"
            alone = build_model(
                Experiment.of(load_config(CONFIGS / f"train_alone_xs_{depth}l{suffix}.yaml"))
            )
            small = deploy(family, f"{depth}L-384-{bits}b")
            deployed = deploy(alone) if bits == 32 else deploy(alone, f"{depth}L-384-{bits}b")
            assert parameter_count([deployed]) == parameter_count([small])
            assert {k: v.shape for k, v in deployed.state_dict().items()} == {
                k: v.shape for k, v in small.state_dict().items()
            }
