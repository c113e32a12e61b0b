"""Streaming from audio to text: sources, texts, what a stream keeps, and what it refuses."""

import argparse
import io

import numpy as np
import pytest
import soundfile

from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.errors import UserError
from tests.fixtures.streams import METHODS, RATE, audio, chunks, wave, whole


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
    from espnet_ext.bridge.decoding import inference
    from espnet_ext.bridge.streaming.latency import Timing
    from espnet_ext.bridge.streaming.transducer import TransducerStreamer
    from espnet_ext.data.audio_stream import pieces

    monkeypatch.chdir(experiment)
    options = METHODS[method]
    model = experiment / "exp/tiny/deploy" / variant
    scp = experiment / "wav.scp"
    soundfile.write(experiment / "short.wav", wave(0.9, 5), RATE, "PCM_16")
    scp.write_text(f"one {experiment}/speech.wav\ntwo {experiment}/short.wav\n")
    decoder = inference.Decoder(model, method, options, SpeechInput(RATE))
    rows = [result[:2] for result in inference.decode_set(decoder, scp, jobs=1)]
    streamer = TransducerStreamer(model, method, options, SpeechInput(RATE))
    for (_, expected), name in zip(rows, ("speech", "short"), strict=True):
        timing = Timing()
        source = pieces(str(experiment / f"{name}.wav"), RATE, streamer.piece)
        partial = list(streamer.run(source, timing))
        assert partial[-1].text == expected
        assert [p.finished for p in partial] == [False] * (len(partial) - 1) + [True]
        seconds = [p.second for p in partial]
        assert seconds == sorted(seconds)
    assert rows[0][1] != rows[1][1]


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


def test_bad_streams_are_one_line(experiment, tmp_path, monkeypatch):
    from espnet_ext.bridge.streaming.latency import Timing
    from espnet_ext.bridge.streaming.transducer import TransducerStreamer
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
    streamer = TransducerStreamer(folder, "transducer_greedy", {}, SpeechInput(RATE))
    for source, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            list(streamer.run(pieces(source, RATE, streamer.piece), Timing()))
        assert "\n" not in str(caught.value)
    # Silence, and less than a chunk, have a text as any other stream, and a doubt.
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
        messages = streamer.doubts(timing)
        assert len(messages) == len(doubts)
        assert all(said in line for said, line in zip(doubts, messages, strict=True))


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
    from espnet_ext.bridge.streaming import text_segments
    from espnet_ext.bridge.streaming.latency import Timing
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


def test_first_text_and_open_tokens_count(streamer, monkeypatch):
    """Text that is shown before it is certain, and that never is before the end."""
    from espnet_ext.bridge.streaming.latency import Timing
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
    from espnet_ext.bridge.streaming.latency import Timing

    timing = Timing()
    partial = list(streamer.run(chunks(streamer, 3.3), timing))
    assert timing.delays.count == len(partial[-1].text)
    assert timing.summary()["first_token_ms"] > 320
    silent = Timing()
    silent.hear(wave(1.0), RATE)
    silent.add(0.01, (), False)
    assert silent.summary()["first_token_ms"] is None
