"""Streaming from audio to text: features, sources, the verb, and what it refuses."""

import argparse
import io
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ext.bridge.speech_input import SpeechInput
from espnet_ext.data.features import DEFINITIONS
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from tests.fixtures import streams
from tests.fixtures.streams import ESPNET, RATE, TOKENS, wave


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    streams.make(root)
    return root


METHODS = {"transducer_greedy": {}, "transducer_beam": {"beam_size": 3}}


@pytest.fixture(params=METHODS)
def streamer(request, experiment, monkeypatch):
    from espnet_ext.bridge.streaming import Streamer

    monkeypatch.chdir(experiment)
    model = experiment / "exp/tiny/deploy/shared"
    return Streamer(model, request.param, METHODS[request.param], SpeechInput(RATE))


def chunks(streamer, seconds: float, seed: int = 0) -> list[np.ndarray]:
    samples = wave(seconds, seed)
    return np.split(samples, range(streamer.piece, len(samples), streamer.piece))


def whole(streamer, samples: np.ndarray) -> str:
    """Text of decoding all at once."""
    import torch

    from espnet_ext.data.fbank import kaldi_fbank

    feats = kaldi_fbank(torch.from_numpy(samples), RATE).numpy()
    (text,) = streamer.decoder.texts([feats])
    return text


@pytest.mark.parametrize("seconds", [0.025, 0.0312, 0.16, 1.0, 1.2345])
@pytest.mark.parametrize("size", [37, 80, 400, 2560, 100000])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_online_features_are_the_offline_ones(seconds, size, definition):
    import torch

    from espnet_ext.data.fbank import OnlineFbank, log_mel

    samples = torch.from_numpy(wave(seconds))
    online = OnlineFbank(RATE, 40, definition)
    parts = [online.accept(piece) for piece in samples.split(size)] + [online.finish()]
    expected = log_mel(samples, RATE, 40, 0, definition)
    found = torch.cat(parts)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4  # of values of order 10


def test_the_model_of_these_tests_tells_inputs_apart(streamer):
    """Otherwise most of the tests here would hold of any model."""
    one, other = (whole(streamer, wave(3.3, seed)) for seed in (0, 5))
    assert one != other
    for text in (one, other):
        assert {"b", " ", "c"} <= set(text)
        assert 60 < len(text) < 83  # of 83 frames: some give no token


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["merged", "shared"])
def test_stream_gives_the_text_of_decoding_the_whole(experiment, variant, method, monkeypatch):
    from espnet_ext.bridge import inference
    from espnet_ext.bridge.latency import Timing
    from espnet_ext.bridge.streaming import Streamer
    from espnet_ext.data.audio_stream import pieces

    monkeypatch.chdir(experiment)
    options = METHODS[method]
    model = experiment / "exp/tiny/deploy" / variant
    scp = experiment / "wav.scp"
    soundfile.write(experiment / "short.wav", wave(0.9, 5), RATE, "PCM_16")
    scp.write_text(f"one {experiment}/speech.wav\ntwo {experiment}/short.wav\n")
    decoder = inference.Decoder(model, method, options, SpeechInput(RATE))
    rows = [result[:2] for result in inference.decode_set(decoder, scp, jobs=1)]
    streamer = Streamer(model, method, options, SpeechInput(RATE))
    for (_, expected), name in zip(rows, ("speech", "short"), strict=True):
        timing = Timing()
        source = pieces(str(experiment / f"{name}.wav"), RATE, streamer.piece)
        partial = list(streamer.run(source, timing))
        assert partial[-1].text == expected
        assert [p.finished for p in partial] == [False] * (len(partial) - 1) + [True]
        seconds = [p.second for p in partial]
        assert seconds == sorted(seconds)
    assert rows[0][1] != rows[1][1]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer of sentencepiece and seven of its pieces, for the ids of the model."""
    import sentencepiece as spm
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

    prefix = tmp_path_factory.mktemp("bpe") / "bpe"
    lines = iter(["ab c abc", "c ab", "abc abc ab", "b a c"] * 5)
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), vocab_size=10, model_type="bpe"
    )
    tokenizer = SentencepiecesTokenizer(f"{prefix}.model")
    tokenizer.tokens2text([])
    assert {"\u2581", "\u2581a", "b", "c"} <= {tokenizer.sp.id_to_piece(i) for i in range(10)}
    return tokenizer, ["<blank>", "<unk>", "\u2581", "b", "\u2581a", "c", "<sos/eos>"]


def with_tokenizer(streamer, kind: str, pieces) -> None:
    """Let the model's ids be pieces of sentencepiece, or characters without blanks."""
    from espnet2.text.token_id_converter import TokenIDConverter

    if kind == "sentencepiece":
        streamer.decoder.inference.tokenizer, names = pieces
        streamer.decoder.inference.converter = TokenIDConverter(names)
    if kind == "unbroken":
        names = ["x" if name == "<space>" else name for name in TOKENS]
        streamer.decoder.inference.converter = TokenIDConverter(names)


@pytest.mark.parametrize("kind", ["characters", "unbroken", "sentencepiece"])
def test_segments_together_are_the_text_of_decoding_the_whole(streamer, kind, sentencepiece):
    from espnet_ext.bridge.latency import Timing
    from espnet_ext.bridge.text_segments import SEGMENT_TOKENS

    with_tokenizer(streamer, kind, sentencepiece)
    partial = list(streamer.run(chunks(streamer, 20.0), Timing()))
    segments = [p.text for p in partial if p.finished]
    assert "".join(segments) == whole(streamer, wave(20.0))
    assert len(segments) > 3
    if kind == "unbroken":
        assert {len(text) for text in segments[:-1]} == {SEGMENT_TOKENS}
    else:  # a segment begins with the blank before its first word, if there is one to end at
        assert any(text.startswith(" ") for text in segments[1:])
        assert all(b.startswith(" ") or " " not in a[1:] for a, b in pairwise(segments))
    assert max(len(p.text) for p in partial) < 2 * 2 * SEGMENT_TOKENS  # two characters a token


@pytest.mark.parametrize("kind", ["characters", "unbroken", "sentencepiece"])
def test_segments_of_any_tokens_are_their_text(streamer, kind, sentencepiece, monkeypatch):
    from espnet_ext.bridge import text_segments

    monkeypatch.setattr(text_segments, "SEGMENT_TOKENS", 5)
    with_tokenizer(streamer, kind, sentencepiece)
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):  # of blanks and beginnings of words
        rest = (1 - share) / 2
        tokens = random.choice([2, 3, 4, 5], 300, p=[share / 2, rest, share / 2, rest]).tolist()
        found, texts = text_segments.Segments(streamer.decoder), []
        for start in range(0, 300, 7):
            texts += found.add(tokens[start : start + 7])
            assert len(found.tokens) <= 5
        assert "".join([*texts, found.text()]) == streamer.decoder.text_of(tokens)
        assert len(texts) >= 300 // 5 - 1
        ends = [(a, b) for a, b in pairwise(texts) if not b.startswith(" ")]
        assert all(" " not in a.strip() for a, _ in ends)


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
    command = [sys.executable, "-m", "espnet_ext.cli.main", "stream", "train_tiny.yaml", *words]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=experiment, check=False)


def test_verb_on_standard_input_prints_partial_results_and_latency(experiment, tmp_path):
    raw = (experiment / "speech.wav").read_bytes()
    figures = tmp_path / "figures.json"
    done = run(experiment, "-", "--variant", "shared", "--json", str(figures), stdin=raw)
    assert done.returncode == 0, done.stderr
    *partial, last = done.stdout.decode().splitlines()
    found = json.loads(figures.read_text())
    assert found.pop("text") == partial[-1].partition(" s | ")[2]
    assert all(" s  " in line for line in partial[:-1])
    assert json.loads(last) == found
    assert len(partial) > 2
    assert found["audio_seconds"] == 3.3
    assert found["chunks"] == 21
    assert 0 < found["chunk_ms_p50"] <= found["chunk_ms_p95"]
    # A token needs its chunk and its look-ahead: 320 ms at least after the start.
    assert found["first_token_ms"] > 320
    assert found["token_delay_ms_p50"] > 160


def test_sources(experiment, tmp_path, monkeypatch):
    from espnet_ext.data.audio_stream import pieces

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
    from espnet_ext.bridge.latency import Timing
    from espnet_ext.bridge.streaming import Streamer
    from espnet_ext.data.audio_stream import pieces

    monkeypatch.chdir(experiment)
    bad = wave(1.0)
    bad[8000] = np.nan
    (tmp_path / "text.wav").write_text("no audio")
    cases = {
        audio(tmp_path / "nan.wav", bad): "NaN or infinite sample at 0.500 s",
        audio(tmp_path / "rate.wav", wave(1.0), 8000): "8000 Hz, the model needs 16000",
        audio(tmp_path / "stereo.wav", np.stack([wave(1.0)] * 2, 1)): "2 channels",
        audio(tmp_path / "short.wav", wave(0.02)): "less than a window of 25 ms",
        audio(tmp_path / "empty.wav", wave(0.0)): "less than a window of 25 ms",
        str(tmp_path / "text.wav"): "cannot decode",
        str(tmp_path / "none.wav"): "no audio file",
    }
    folder = experiment / "exp/tiny/deploy/shared"
    streamer = Streamer(folder, "transducer_greedy", {}, SpeechInput(RATE))
    for source, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            list(streamer.run(pieces(source, RATE, streamer.piece), Timing()))
        assert "\n" not in str(caught.value)
    # Silence, and less than a chunk, have a text as any other stream, and a doubt beside it.
    short = "less than a chunk of 0.16 s"
    dither = np.random.default_rng(0).integers(-1, 2, RATE).astype(np.float32) / 32768
    for samples, doubts in (
        (np.zeros(RATE, np.float32), ["silence: it peaks at -inf dBFS, below -80 dBFS"]),
        (dither, ["silence: it peaks at -90.3 dBFS, below -80 dBFS"]),
        (wave(1.0) * 0.001, []),  # speech at a level of -80 dBFS, whose peaks are above
        (wave(0.03), ["0.030 s, " + short]),
        (wave(0.1), ["0.100 s, " + short]),
        (np.zeros(800, np.float32), ["0.050 s, " + short, "silence"]),
        (wave(0.16), []),
    ):
        timing = Timing()
        source = pieces(audio(tmp_path / "fine.wav", samples), RATE, streamer.piece)
        (*_, (second, text, finished)) = streamer.run(source, timing)
        assert finished
        assert second == pytest.approx(len(samples) / RATE)
        assert isinstance(text, str)
        told = streamer.doubts(timing)
        assert len(told) == len(doubts)
        assert all(said in line for said, line in zip(doubts, told, strict=True))


def test_verb_says_that_a_stream_is_silent_in_one_line(experiment, tmp_path, monkeypatch, capsys):
    from espnet_ext.cli import stream

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
    from espnet_ext.cli import stream

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


def sizes(kept, name: str = "") -> dict[str, int]:
    """Numbers in every array, and items in every list or text, of what an object holds."""
    import torch

    if isinstance(kept, torch.Tensor):
        return {name: kept.untyped_storage().nbytes() // kept.element_size()}
    if isinstance(kept, np.ndarray):
        return {name: kept.size}
    if isinstance(kept, str):
        return {name: len(kept)}
    found = {}
    if isinstance(kept, list | tuple):
        found[name] = len(kept)
        inside = {str(i): item for i, item in enumerate(kept)}
    else:
        inside = vars(kept) if hasattr(kept, "__dict__") else {}
    for key, item in inside.items():
        if not key.endswith("decoder"):  # of the streamer, which is there before
            found |= sizes(item, f"{name}.{key}")
    return found


# What varies with the text: tokens settled, open (and those of a frame), and both.
LIMITS = {
    ".segments.tokens": 20,
    ".segments.before": 1,
    ".search.tokens": 10,
    ".search.frames": 10,
    ".shown": 20 + 10,
}


def test_state_of_a_long_stream_does_not_grow(streamer, monkeypatch):
    from espnet_ext.bridge import text_segments
    from espnet_ext.bridge.latency import Timing
    from espnet_ext.encoders.chunks import Geometry
    from espnet_ext.models import transducer_search

    # Chunks of 40 ms, to be quick, and limits that are reached in the first hundred of them.
    monkeypatch.setattr(streamer.encoder, "geometry", Geometry.of(40, 80, 40))
    monkeypatch.setattr(streamer, "chunk", 4)
    monkeypatch.setattr(transducer_search, "OPEN_TOKENS", 10)
    monkeypatch.setattr(text_segments, "SEGMENT_TOKENS", 20)
    stream = streamer.start(Timing())
    early: dict[str, int] = {}
    text = ""
    for chunk in range(1000):
        found = streamer.accept(wave(0.04, chunk), False, stream)
        text += "".join(p.text for p in found if p.finished)
        assert sum(len(p.text) for p in found) <= 20 + 20 + 10
        if chunk < 100:
            early = {k: max(v, early.get(k, 0)) for k, v in (early | sizes(stream)).items()}
        elif chunk >= 900:
            for key, size in sizes(stream).items():
                bound = next((v for k, v in LIMITS.items() if key.startswith(k)), early.get(key, 0))
                assert size <= bound, key
    parts = {key.split(".")[1] for key in early}
    assert parts == {"fbank", "feats", "encoder", "search", "segments", "timing", "shown"}
    assert len(text) > 500  # what has left the state
    assert stream.timing.chunks.count == 1000 and stream.timing.delays.count > 500


def test_times_are_summed_up_as_numpy_does():
    from espnet_ext.bridge.latency import BIN_WIDTH, Durations

    random = np.random.default_rng(0)
    for values in (
        random.lognormal(-4, 1, 5000),
        random.uniform(0.01, 0.011, 1000),
        np.array([0.002, 3.0]),
        np.array([0.5]),
        np.array([0.0, 0.0, 1e-3, 2e-3, 1e6]),
    ):
        found = Durations()
        for value in values.tolist():
            found.add(value)
        assert (found.count, found.least, found.greatest) == (
            len(values),
            values.min(),
            values.max(),
        )
        assert found.total == pytest.approx(values.sum(), rel=1e-12)
        for q in (0, 5, 50, 95, 100):
            assert found.percentile(q) == pytest.approx(np.percentile(values, q), rel=BIN_WIDTH)
    assert Durations().percentile(50) is None


def test_first_text_and_open_tokens_count(streamer, monkeypatch):
    """Text that is shown before it is certain, and that never is before the end."""
    from espnet_ext.bridge.latency import Timing
    from espnet_ext.models.transducer_search import Hypothesis

    monkeypatch.setattr(streamer.search, "commit", lambda state: [Hypothesis((), 0.0)])
    timing = Timing()
    partial = list(streamer.run(chunks(streamer, 3.3), timing))
    first = next(p.second for p in partial if p.text)
    assert first == pytest.approx(0.48)  # a chunk, its look-ahead, 7.5 ms of the last window
    assert first < timing.first_token <= first + timing.chunks.total
    assert timing.delays.count == len(partial[-1].text)  # characters: one a token
    # The last frame ends with the audio, the first 3.26 s before.
    assert 0 < timing.delays.least < 0.2 < 3 < timing.delays.greatest


def test_every_token_has_a_delay(streamer):
    from espnet_ext.bridge.latency import Timing

    timing = Timing()
    partial = list(streamer.run(chunks(streamer, 3.3), timing))
    assert timing.delays.count == len(partial[-1].text)
    assert timing.summary()["first_token_ms"] > 320
    silent = Timing()
    silent.hear(wave(1.0), RATE)
    silent.add(0.01, (), False)
    assert silent.summary()["first_token_ms"] is None


def test_wrong_models_to_start_from(experiment, tmp_path):
    import torch

    from espnet_ext.bridge.build import build_model
    from espnet_ext.bridge.start_model import refuse_other_start
    from espnet_ext.config.training import load_config

    def config(name, **residual):
        conf = {**ESPNET["encoder_conf"], "residual": residual}
        path = tmp_path / f"train_{name}.yaml"
        path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": conf}))
        return Experiment.of(load_config(path))

    shared = config("shared", share=2, rank=0, diagonal=False)
    model = build_model(shared)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    checkpoint = tmp_path / "shared.pth"
    torch.save(model.state_dict(), checkpoint)
    residual = config("residual", share=2, rank=2)
    refuse_other_start(build_model(residual), [checkpoint])
    finer = config("finer", share=1, rank=0, diagonal=False)
    refuse_other_start(build_model(finer), [checkpoint])
    for other, said in (
        (config("coarser", share=4, rank=2), "differ, here they are shared"),
        (config("sites", share=2, rank=2, sites=["ffn"]), "of another model"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_other_start(build_model(other), [checkpoint])
        assert "\n" not in str(caught.value)
    wide = {**ESPNET["encoder_conf"], "linear_units": 10, "residual": {"share": 2, "rank": 2}}
    path = tmp_path / "train_wide.yaml"
    path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": wide}))
    with pytest.raises(UserError, match="has shape"):
        refuse_other_start(build_model(Experiment.of(load_config(path))), [checkpoint])
