"""Settings that do nothing are named."""

from pathlib import Path

import pytest

from espnet_ext.config.no_effect import no_effect_warnings
from espnet_ext.config.training import Config, Recipe

SAVES = "saves bytes only with recipe: {huffman: true}"


@pytest.mark.parametrize(
    "nested, huffman, says",
    [
        ({"step": 0.5}, False, ["step has no effect without scale: deviation"]),
        ({"scale": "deviation"}, False, [f"scale: deviation {SAVES}"]),
        ({"table": 2, "table_step": 1.0}, False, [f"table_step {SAVES}"]),
        ({"scale": "deviation", "step": 0.5}, True, []),
        ({"bits": [4]}, True, []),
    ],
)
def test_a_step_without_deviation_or_codes(nested, huffman, says):
    espnet = {"encoder_conf": {"nested": nested}}
    found = no_effect_warnings(Config(Path("a.yaml"), "a", Recipe(huffman=huffman), espnet))
    assert [line.removeprefix("encoder_conf: nested: ") for line in found] == says


@pytest.mark.parametrize(
    "change, says",
    [
        ({}, ["decoder_conf: residual: start has no effect: no trained layers are given"]),
        ({"init_param": ["exp/a/deploy/merged/model.pth"]}, []),
        ({"decoder_conf": {"path": "downloads/x", "residual": {"start": "first"}}}, []),
        ({"decoder_conf": {"residual": {"rank": 4}}}, []),
    ],
)
def test_a_start_without_trained_layers(change, says):
    espnet = {"decoder_conf": {"residual": {"start": "first"}}} | change
    assert no_effect_warnings(Config(Path("a.yaml"), "a", Recipe(), espnet)) == says
