"""Both decoding methods on a tiny model, with and without intermediate CTC; their speed."""

import os
import types

import numpy as np
import pytest
import yaml

from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError

TOKENS = ["<blank>", "<unk>", "<space>", "a", "b", "c", "<sos/eos>"]
ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2}


def saved(folder, layers: list[int]):
    """Write an ESPnet model with random weights, as deploy leaves it."""
    import torch

    from espnet_ext.bridge import build

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
    from espnet_ext.bridge.inference import decode, load_speech2text

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
    from espnet_ext.bridge.inference import load_speech2text

    with pytest.raises(UserError, match="beam_width"):
        load_speech2text(saved(tmp_path, []), "ctc_att_beam", {"beam_width": 3})


def test_the_timed_utterances_are_spread_over_the_lengths_and_always_the_same():
    from espnet_ext.bridge.inference import spread

    lengths = np.random.default_rng(1).permutation(1000).astype(float)
    chosen = spread(lengths, 50)
    assert chosen == spread(lengths, 50)
    assert [lengths[i] for i in chosen] == [10.0 + 20 * k for k in range(50)]
    assert sorted(spread([3.0, 1.0, 2.0], 50)) == [0, 1, 2]


def test_the_speed_is_that_of_one_process_alone_in_the_median_round(tmp_path, monkeypatch):
    """Four processes decode; the clock runs for this one, which decodes again after them."""
    import torch

    from espnet_ext.bridge import inference

    calls, clock = [], [0.0]
    spent = iter([50.0, *(5 * [1.0]), *(5 * [9.0]), *(5 * [2.0]), *(5 * [3.0]), *(5 * [2.5])])

    def decode(_model, _speech, _method):
        calls.append((os.getpid(), torch.get_num_threads()))
        clock[0] += next(spent)
        return "text"

    (tmp_path / "wav.scp").write_text("".join(f"u{i:02} {i}.wav\n" for i in range(40)))
    fakes = {
        "load_model": lambda *_: None,
        "load_speech2text": lambda *_: types.SimpleNamespace(asr_model=None),
        "read_input": lambda utterance, *_: (utterance, 4.0),
        "map_processes": lambda f, batches, *_, **__: [
            [(u, "text", 4.0, 1.0) for u, _ in batch] for batch in batches
        ],
        "decode": decode,
        "TIMED_UTTERANCES": 5,
        "time": types.SimpleNamespace(perf_counter=lambda: clock[0]),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(inference, name, fake)
    threads = torch.get_num_threads()
    rows, summary = inference.decode_set(
        tmp_path, "ctc_greedy", {}, tmp_path / "wav.scp", 16000, nj=4
    )
    assert len(rows) == summary["utterances"] == 40
    # 5 utterances of 4 s take 5, 45, 10, 15 and 12.5 s; the 50 s before are not counted.
    assert summary["rtf_rounds"] == [0.25, 2.25, 0.5, 0.75, 0.625]
    assert (summary["rtf"], summary["rtf_utterances"]) == (0.625, 5)
    assert set(calls) == {(os.getpid(), 1)}
    assert torch.get_num_threads() == threads
    told = len(calls)
    _, summary = inference.decode_set(
        tmp_path, "ctc_greedy", {}, tmp_path / "wav.scp", 16000, nj=4, timed=False
    )
    assert summary["utterances"] == 40
    assert not [key for key in summary if key.startswith("rtf")]
    assert len(calls) == told
