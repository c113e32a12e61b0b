"""Both decoding methods on a tiny model, with and without intermediate CTC; their speed."""

import os
import types

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ext.config.training import Config, Recipe
from espnet_ext.data.parts import Part
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

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
    experiment = Experiment.of(config)
    torch.manual_seed(1)
    model = build.build_model(experiment, len(TOKENS))
    torch.save(model.state_dict(), folder / "model.pth")
    arguments = vars(build.arguments_of(experiment))
    arguments |= {"token_list": TOKENS, "input_size": 20, "init_param": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(arguments))
    return folder


def decoder(folder, method: str, options: dict):
    from espnet_ext.bridge.decoding.decoder import Decoder
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    return Decoder(folder, method, options, SpeechInput(16000))


@pytest.mark.parametrize("layers", [[], [1]], ids=["plain", "interctc"])
def test_both_methods_give_one_line_of_text(tmp_path, layers):
    model = saved(tmp_path, layers)
    speech = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    texts = {}
    for method, options in {
        "ctc_greedy": {},
        "ctc_att_beam": {"ctc_weight": 1.0, "beam_size": 3},
    }.items():
        (texts[method],) = decoder(model, method, options).texts([speech])
    for text in texts.values():
        assert isinstance(text, str)
        assert set(text) <= set("abc <unk>")
    assert any(texts.values())


def test_an_option_that_espnet_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match="beam_width"):
        decoder(saved(tmp_path, []), "ctc_att_beam", {"beam_width": 3})


def test_the_timed_utterances_are_spread_over_the_lengths_and_always_the_same():
    from espnet_ext.bridge.decoding.inference import spread

    lengths = np.random.default_rng(1).permutation(1000).astype(float)
    chosen = spread(lengths, 50)
    assert chosen == spread(lengths, 50)
    assert [lengths[i] for i in chosen] == [10.0 + 20 * k for k in range(50)]
    assert sorted(spread([3.0, 1.0, 2.0], 50)) == [0, 1, 2]


def test_the_speed_is_the_processor_time_of_the_fastest_round(tmp_path, monkeypatch):
    """Four processes decode; the clock runs for this one, which decodes again after them."""
    import torch

    from espnet_ext.bridge.decoding import inference

    calls, clock = [], [0.0]
    rounds = [*(5 * [0.125]), *(5 * [1.125]), *(5 * [0.25]), *(5 * [0.0625]), *(5 * [0.3125])]
    slow = [4.0] * 10
    spent = iter([50.0, *rounds, 4.0, *slow])

    class Pretended(inference.Decoder):
        """A decoder without a model, whose texts take the time that ``spent`` says."""

        def __init__(self):
            self.method, self.in_batches, self.batch_size = "ctc_greedy", False, 1
            self.device = "cpu"

        def read(self, row):
            return np.zeros(1, np.float32), 4.0

        def texts(self, batch):
            for _ in batch:
                calls.append((os.getpid(), torch.get_num_threads()))
                clock[0] += next(spent)
            return ["text"] * len(batch)

    (tmp_path / "wav.scp").write_text("".join(f"u{i:02} {i}.wav\n" for i in range(40)))
    fakes = {
        "map_processes": lambda f, batches, *_, **__: [
            [(u, "text", 4.0, 1.0, False) for u, _ in batch] for batch in batches
        ],
        "TIMED_UTTERANCES": 5,
        "time": types.SimpleNamespace(process_time=lambda: clock[0]),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(inference, name, fake)
    threads = torch.get_num_threads()
    scp = tmp_path / "wav.scp"
    found = inference.decode_set(Pretended(), scp, jobs=4)
    assert len(found) == inference.summary(found, "cpu")["utterances"] == 40
    assert not calls
    summary = inference.time_set(Pretended(), scp, found)
    # Five utterances of 4 s; the 50 s before are not counted.
    assert summary["rtf_rounds"] == [0.03125, 0.28125, 0.0625, 0.015625, 0.078125]
    assert (summary["rtf"], summary["rtf_utterances"]) == (0.015625, 5)
    assert summary["load"] >= 0
    assert set(calls) == {(os.getpid(), 1)}
    assert torch.get_num_threads() == threads
    third = inference.decode_set(Pretended(), scp, jobs=4, part=Part(3, 3))
    assert third == found[2::3]
    # A slow system, of 20 s a round, is measured twice.
    assert inference.time_set(Pretended(), scp, found)["rtf_rounds"] == [1.0, 1.0]


@pytest.mark.parametrize("seconds", [0.025, 0.05])
def test_an_utterance_too_short_for_a_frame_has_an_empty_text(tmp_path, seconds):
    from espnet_ext.bridge.decoding.inference import decode_set, summary

    noise = np.random.default_rng(0).normal(size=16000) * 0.1
    for name, length in (("long", 1.0), ("short", seconds)):
        soundfile.write(tmp_path / f"{name}.wav", noise[: round(16000 * length)], 16000)
    scp = tmp_path / "wav.scp"
    scp.write_text("".join(f"{name} {tmp_path / name}.wav\n" for name in ("long", "short")))
    model = saved(tmp_path, [])
    for method in ("ctc_greedy", "ctc_att_beam"):
        found = decoder(model, method, {"beam_size": 2} if "beam" in method else {})
        (alone,) = found.texts([found.read(("long", str(tmp_path / "long.wav")))[0]])
        results = decode_set(found, scp, 1)
        assert [result[:2] for result in results] == [("long", alone), ("short", "")]
        assert alone
        made = summary(results, "cpu")
        assert (made["utterances"], made["too_short"], made["device"]) == (2, 1, "cpu")


def test_a_classifier_lengthens_what_is_too_short():
    from espnet_ext.bridge.decoding.decoder import Decoder

    class Short:
        method, most_samples = "classify", None

        def is_too_short(self, speech):
            return len(speech) < 7

    frames = np.arange(6.0).reshape(2, 3)
    (found,) = Decoder.pieces(Short(), frames)
    assert np.array_equal(found, np.vstack([frames, *[frames[-1:]] * 6]))
    (found,) = Decoder.pieces(Short(), np.ones(3))
    assert found.tolist() == [1.0] * 3 + [0.0] * 9
    Short.method = "ctc_greedy"
    assert Decoder.pieces(Short(), frames) == []


def test_deploy_is_verified_on_utterances_of_several_frames(tmp_path, monkeypatch):
    from espnet_ext.bridge.deployed import folder
    from espnet_ext.stages.deploy import deploy

    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(size=16000) * 0.1
    for name, length in (("a", 0.04), ("b", 1.0)):
        soundfile.write(f"{name}.wav", noise[: round(16000 * length)], 16000)
    (tmp_path / "data/dev").mkdir(parents=True)
    (tmp_path / "data/dev/wav.scp").write_text("a a.wav\nb b.wav\n")
    seen = []

    def stop(_experiment, _checkpoint, speech):
        seen.extend(len(wave) for wave in speech.waves)
        raise UserError("enough")

    monkeypatch.setattr(folder, "deploy_experiment", stop)
    config = Config(tmp_path / "train_tiny.yaml", "tiny", Recipe(), {"encoder": "transformer"})
    with pytest.raises(UserError, match="enough"):
        deploy(Experiment.of(config), tmp_path / "model.pth")
    assert seen == [16000]


def test_espnets_warnings_do_not_reach_the_user(tmp_path, caplog, capfd):
    model = saved(tmp_path, [])  # ctc_weight 1, of which ESPnet warns
    caplog.clear()
    capfd.readouterr()
    decoder(model, "ctc_greedy", {})
    assert not caplog.records and capfd.readouterr().err == ""
