"""Streaming from audio to text: features, sources, the verb, and what it refuses."""

import argparse
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ext.errors import UserError

TOKENS = ["<blank>", "<unk>", "<space>", "a", "b", "c", "<sos/eos>"]
RATE = 16000
ESPNET = {
    "encoder": "residual_streaming_transformer",
    "encoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 4,
        "conv_channels": 4,
        "residual": {"share": 2, "rank": 2},
    },
    "decoder": "transducer",
    "decoder_conf": {"hidden_size": 6, "embed_size": 5},
    "joint_net_conf": {"joint_space_size": 7},
    "model_conf": {"ctc_weight": 0.0, "report_cer": False, "report_wer": False},
    "token_type": "char",
    "frontend": "kaldi_fbank",
    "normalize": "global_mvn",
}


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.1
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A recipe folder with a config and both forms of a trained-like model, made by deploy."""
    import torch

    from espnet_ext.config import load_config
    from espnet_ext.tasks import build
    from espnet_ext.tasks.deployment import deploy_checkpoint

    root = tmp_path_factory.mktemp("recipe")
    recipe = {"decode": {"transducer_greedy": {}, "transducer_beam": {"beam_size": 3}}}
    (root / "train_tiny.yaml").write_text(yaml.safe_dump({**ESPNET, "recipe": recipe}))
    config = load_config(root / "train_tiny.yaml")
    sums = np.full(80, -8.0, np.float32)
    np.savez(root / "stats.npz", count=1, sum=sums, sum_square=sums**2 + 4)
    arguments = vars(build._arguments(config))
    arguments |= {"token_list": TOKENS, "normalize_conf": {"stats_file": str(root / "stats.npz")}}
    model = build.build_model(config, len(TOKENS))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
        model.joint_network.lin_out.bias[0] += 1.0
    folder = root / "exp/tiny"
    folder.mkdir(parents=True)
    state = model.state_dict()
    state["normalize.mean"], state["normalize.std"] = (
        torch.from_numpy(sums),
        torch.full((80,), 2.0),
    )
    torch.save(state, folder / "1epoch.pth")
    plain = json.loads(json.dumps(arguments))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    for variant in ("merged", "shared"):
        deploy_checkpoint(
            folder / "config.yaml",
            folder / "1epoch.pth",
            variant,
            [torch.from_numpy(wave(2.0))],
            RATE,
            folder / "deploy" / variant,
        )
    soundfile.write(root / "speech.wav", wave(3.3), RATE, "PCM_16")
    return root


@pytest.mark.parametrize("seconds", [0.025, 0.0312, 0.16, 1.0, 1.2345])
@pytest.mark.parametrize("size", [37, 80, 400, 2560, 100000])
def test_online_features_are_the_offline_ones(seconds, size):
    import torch

    from espnet_ext.data.fbank import OnlineFbank, kaldi_fbank

    samples = torch.from_numpy(wave(seconds))
    online = OnlineFbank(RATE, 40)
    parts = [online.accept(piece) for piece in samples.split(size)] + [online.finish()]
    expected = kaldi_fbank(samples, RATE, 40)
    found = torch.cat(parts)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4  # of values of order 10


@pytest.mark.parametrize("method", ["transducer_greedy", "transducer_beam"])
@pytest.mark.parametrize("variant", ["merged", "shared"])
def test_stream_gives_the_text_of_decoding_the_whole(experiment, variant, method, monkeypatch):
    from espnet_ext.data.source import pieces
    from espnet_ext.tasks import decoding
    from espnet_ext.tasks.streaming import Streamer, Timing

    monkeypatch.chdir(experiment)
    options = {"beam_size": 3} if method == "transducer_beam" else {}
    model = experiment / "exp/tiny/deploy" / variant
    scp = experiment / "wav.scp"
    soundfile.write(experiment / "short.wav", wave(0.9, 5), RATE, "PCM_16")
    scp.write_text(f"one {experiment}/speech.wav\ntwo {experiment}/short.wav\n")
    rows, summary = decoding.decode_set(model, method, options, scp, RATE, nj=1)
    streamer = Streamer(model, method, options, RATE)
    for (_, expected), name in zip(rows, ("speech", "short"), strict=True):
        timing = Timing()
        source = pieces(str(experiment / f"{name}.wav"), RATE, streamer.piece)
        partial = list(streamer.run(source, timing))
        assert partial[-1][1] == expected
        seconds = [second for second, _ in partial]
        assert seconds == sorted(seconds)
    assert len(rows[0][1]) > 3
    assert summary["utterances"] == 2


def test_shared_file_names_each_tensor_once(experiment):
    import torch

    states = {
        v: torch.load(experiment / f"exp/tiny/deploy/{v}/model.pth", weights_only=True)
        for v in ("merged", "shared")
    }
    name = "encoder.encoders.{}.feed_forward.w_1.weight"
    assert name.format(1) in states["merged"]
    assert name.format(0) in states["shared"]
    assert name.format(1) not in states["shared"]  # it is that of layer 0
    assert len({t.data_ptr() for t in states["shared"].values()}) == len(states["shared"])
    single = [t for t in states["shared"].values() if t.dtype == torch.float32]
    assert len({t.untyped_storage().data_ptr() for t in single}) == 1


def run(experiment, *words, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "espnet_ext.bin.main", "stream", "train_tiny.yaml", *words]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=experiment, check=False)


def test_verb_on_standard_input_prints_partial_results_and_latency(experiment, tmp_path):
    raw = (experiment / "speech.wav").read_bytes()
    figures = tmp_path / "figures.json"
    done = run(experiment, "-", "--variant", "shared", "--json", str(figures), stdin=raw)
    assert done.returncode == 0, done.stderr
    *partial, last = done.stdout.decode().splitlines()
    found = json.loads(figures.read_text())
    assert found.pop("text") == partial[-1].partition(" s  ")[2]
    assert json.loads(last) == found
    assert len(partial) > 2
    assert found["audio_seconds"] == 3.3
    assert found["chunks"] == 21
    assert 0 < found["chunk_ms_p50"] <= found["chunk_ms_p95"]
    # A token needs its chunk and its look-ahead: 320 ms at least after the start.
    assert found["first_token_ms"] > 320
    assert found["token_delay_ms_p50"] > 160


def test_sources(experiment, tmp_path, monkeypatch):
    from espnet_ext.data.source import pieces

    samples = soundfile.read(experiment / "speech.wav", dtype="float32")[0]
    pcm = soundfile.read(experiment / "speech.wav", dtype="int16")[0].tobytes()
    whole = {"file": [str(experiment / "speech.wav"), b""]}
    whole["raw"] = ["-", pcm]
    whole["wav"] = ["-", (experiment / "speech.wav").read_bytes()]
    for name, (source, stdin) in whole.items():
        monkeypatch.setattr("sys.stdin", argparse.Namespace(buffer=io.BytesIO(stdin)))
        found = list(pieces(source, RATE, 1000))
        assert [len(p) for p in found[:-1]] == [1000] * (len(found) - 1), name
        assert np.array_equal(np.concatenate(found), samples), name


def audio(path, samples, rate=RATE, subtype="FLOAT") -> str:
    soundfile.write(path, samples, rate, subtype)
    return str(path)


def test_bad_streams_are_one_line(experiment, tmp_path, monkeypatch):
    from espnet_ext.data.source import pieces
    from espnet_ext.tasks.streaming import Streamer, Timing

    monkeypatch.chdir(experiment)
    bad = wave(1.0)
    bad[8000] = np.nan
    (tmp_path / "text.wav").write_text("no audio")
    cases = {
        audio(tmp_path / "nan.wav", bad): "NaN or infinite sample at 0.500 s",
        audio(tmp_path / "rate.wav", wave(1.0), 8000): "8000 Hz, the model takes 16000",
        audio(tmp_path / "stereo.wav", np.stack([wave(1.0)] * 2, 1)): "2 channels",
        audio(tmp_path / "short.wav", wave(0.02)): "less than a window of 25 ms",
        audio(tmp_path / "empty.wav", wave(0.0)): "less than a window of 25 ms",
        str(tmp_path / "text.wav"): "cannot decode",
        str(tmp_path / "none.wav"): "no audio file",
    }
    streamer = Streamer(experiment / "exp/tiny/deploy/shared", "transducer_greedy", {}, RATE)
    for source, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            list(streamer.run(pieces(source, RATE, streamer.piece), Timing()))
        assert "\n" not in str(caught.value)
    # Silence, and less than a chunk, have a text as any other stream, and a doubt beside it.
    short = "less than a chunk of 0.16 s"
    for samples, doubts in (
        (np.zeros(RATE, np.float32), ["silence: all its samples are 0"]),
        (wave(0.03), ["0.030 s, " + short]),
        (wave(0.1), ["0.100 s, " + short]),
        (np.zeros(800, np.float32), ["0.050 s, " + short, "silence"]),
        (wave(0.16), []),
    ):
        timing = Timing()
        source = pieces(audio(tmp_path / "fine.wav", samples), RATE, streamer.piece)
        (*_, (second, text)) = streamer.run(source, timing)
        assert second == pytest.approx(len(samples) / RATE)
        assert isinstance(text, str)
        told = streamer.doubts(timing)
        assert len(told) == len(doubts)
        assert all(said in line for said, line in zip(doubts, told, strict=True))


def test_verb_says_that_a_stream_is_silent_in_one_line(experiment, tmp_path, monkeypatch, capsys):
    from espnet_ext.bin import stream

    monkeypatch.chdir(experiment)
    silent = audio(tmp_path / "silent.wav", np.zeros(RATE, np.float32))
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    stream.run(parser.parse_args(["train_tiny.yaml", silent, "--variant", "shared"]))
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("espnet-ext stream")]
    assert len(lines) == 1 and "silence" in lines[0] and silent in lines[0]
    stream.run(parser.parse_args(["train_tiny.yaml", "speech.wav", "--variant", "shared"]))
    assert "warning" not in capsys.readouterr().err


def test_verb_refuses_in_one_line(experiment, monkeypatch):
    from espnet_ext.bin import stream

    monkeypatch.chdir(experiment)
    asked = {"config": "train_tiny.yaml", "audio": "speech.wav", "tag": None, "method": None}
    for change, said in (
        ({"variant": "nested"}, "run stage 5"),
        ({"variant": "shared", "audio": "none.wav"}, "no audio file"),
    ):
        args = argparse.Namespace(threads=1, json=None, **{**asked, **change})
        with pytest.raises(UserError, match=said) as caught:
            stream.run(args)
        assert "\n" not in str(caught.value)


def test_state_of_a_long_stream_does_not_grow(experiment, monkeypatch):
    import torch

    from espnet_ext.tasks.streaming import Streamer, Timing

    monkeypatch.chdir(experiment)
    model = experiment / "exp/tiny/deploy/shared"
    streamer = Streamer(model, "transducer_beam", {"beam_size": 3}, RATE)
    sizes = []
    advance = streamer.search.advance

    def measured(encoded, lengths, state):
        state = advance(encoded, lengths, state)
        sizes.append(max(len(t) for t in state.tokens[0]))
        return state

    monkeypatch.setattr(streamer.search, "advance", measured)
    torch.manual_seed(0)
    source = (wave(0.16, seed) for seed in range(150))
    (*_, (second, text)) = streamer.run(source, Timing())
    assert second == pytest.approx(24.0)
    assert len(text) > 2 * max(sizes)  # what is certain has left the state


def test_wrong_models_to_start_from(experiment, tmp_path):
    import torch

    from espnet_ext.config import load_config
    from espnet_ext.tasks.build import build_model
    from espnet_ext.tasks.starting import refuse_other_start

    def config(name, **residual):
        conf = {**ESPNET["encoder_conf"], "residual": residual}
        path = tmp_path / f"train_{name}.yaml"
        path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": conf}))
        return load_config(path)

    shared = config("shared", share=2, rank=0, diagonal=False)
    model = build_model(shared)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    checkpoint = tmp_path / "shared.pth"
    torch.save(model.state_dict(), checkpoint)
    refuse_other_start(config("residual", share=2, rank=2), [checkpoint])
    refuse_other_start(config("finer", share=1, rank=0, diagonal=False), [checkpoint])
    for other, said in (
        (config("coarser", share=4, rank=2), "differ, here they are shared"),
        (config("sites", share=2, rank=2, sites=["ffn"]), "of another model"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_other_start(other, [checkpoint])
        assert "\n" not in str(caught.value)
    wide = {**ESPNET["encoder_conf"], "linear_units": 10, "residual": {"share": 2, "rank": 2}}
    path = tmp_path / "train_wide.yaml"
    path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": wide}))
    with pytest.raises(UserError, match="has shape"):
        refuse_other_start(load_config(path), [checkpoint])
