"""Both decoding methods on a tiny model, with and without intermediate CTC."""

import numpy as np
import pytest
import yaml

from espnet_ext.config import Config, Recipe
from espnet_ext.errors import UserError

TOKENS = ["<blank>", "<unk>", "<space>", "a", "b", "c", "<sos/eos>"]
ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2}


def saved(folder, layers: list[int]):
    """Write an ESPnet model with random weights, as deploy leaves it."""
    import torch

    from espnet_ext.tasks import build

    espnet = {
        "encoder": "transformer",
        "encoder_conf": {**ENCODER, "interctc_layer_idx": layers},
        "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.3 if layers else 0.0},
        "token_type": "char",
        "frontend": None,
        "input_size": 20,
        "normalize": None,
    }
    config = Config(folder / "train_tiny.yaml", "tiny", Recipe(), espnet)
    torch.manual_seed(1)
    model = build.build_model(config, len(TOKENS))
    torch.save(model.state_dict(), folder / "model.pth")
    arguments = vars(build._arguments(config))
    arguments |= {"token_list": TOKENS, "input_size": 20, "init_param": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(arguments))
    return folder


@pytest.mark.parametrize("layers", [[], [1]], ids=["plain", "interctc"])
def test_both_methods_give_one_line_of_text(tmp_path, layers):
    from espnet_ext.tasks.decoding import decode, load_speech2text

    model = saved(tmp_path, layers)
    speech = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    texts = {}
    for method, options in {
        "ctc_greedy": {},
        "ctc_att_beam": {"ctc_weight": 1.0, "beam_size": 3},
    }.items():
        texts[method] = decode(load_speech2text(model, method, options), speech, method)
    for text in texts.values():
        assert isinstance(text, str)
        assert set(text) <= set("abc <unk>")
    assert any(texts.values())


def test_an_option_that_espnet_does_not_know_is_refused(tmp_path):
    from espnet_ext.tasks.decoding import load_speech2text

    with pytest.raises(UserError, match="beam_width"):
        load_speech2text(saved(tmp_path, []), "ctc_att_beam", {"beam_width": 3})
