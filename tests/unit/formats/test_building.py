"""Models that are built from the config of a file, and the limit on their size."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from espnet_ext.encoders.pretrained.load import build_stack, load_stack
from espnet_ext.errors import UserError
from espnet_ext.formats.building import bounded, building, from_own_file

LARGE = 2_000_000  # numbers: more than a model of an empty file may have


def build_large():
    nn.Linear(LARGE, 1, bias=False)


def refused(name):
    """The refusal of a config of this name."""
    return pytest.raises(UserError, match=f"{name}: its model is many times as large")


def test_model_far_larger_than_its_weights_is_refused():
    with refused("config.yaml"), building({}, Path("config.yaml")):
        build_large()


def test_more_weights_allow_a_larger_model():
    with building({"weight": torch.zeros(LARGE)}, Path("config.yaml")):
        build_large()


def test_model_of_another_file_is_not_counted():
    with building({}, Path("config.yaml")), from_own_file():
        build_large()


def test_pretrained_model_behind_a_mimic_is_read(tmp_path):
    sizes = {"d_model": 128, "encoder_attention_heads": 2, "encoder_ffn_dim": 512}
    architecture = {"model_type": "whisper", "encoder_layers": 6, **sizes}
    with refused("config.yaml"), building({}, Path("config.yaml")):
        build_stack(architecture)
    build_stack(architecture).save(tmp_path / "model")
    with building({}, Path("config.yaml")):
        assert load_stack(tmp_path / "model").num_layers == 6


def test_config_of_a_far_larger_model_than_its_file_is_refused(tmp_path):
    sizes = {"d_model": 64, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    build_stack({"model_type": "whisper", "encoder_layers": 1, **sizes}).save(tmp_path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"d_model": 4096}))
    with pytest.raises(UserError, match="describes a model that is many times as large"):
        load_stack(tmp_path)


def check_inner():
    with refused("inner.yaml"), building({}, Path("inner.yaml")):
        build_large()


def test_limit_inside_another_file_holds():
    with building({}, Path("outer.yaml")), from_own_file():
        check_inner()


def test_memory_counts_models_of_all_files():
    limit = bounded(1_000_000, "too large")
    with pytest.raises(UserError, match="too large"), limit, from_own_file():
        build_large()
