"""Streaming transducers as graphs: torch's texts, chunk by chunk, here and in sherpa-onnx."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import sherpa_onnx
from espnet2.layers.utterance_mvn import UtteranceMVN

import espnet_ext
from espnet_ext.bridge.decoding.loading import decoder_of
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.streaming.latency import Timing
from espnet_ext.bridge.streaming.transducer import TransducerStreamer
from espnet_ext.cli import transcribe
from espnet_ext.errors import UserError
from espnet_ext.export.folder import export
from espnet_ext.export.runtime.run_onnx import Model, Stream
from espnet_ext.export.runtime.stream import OnnxStreamer
from espnet_ext.export.traced import transducer
from espnet_ext.files import PACKED
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import read_member
from tests.fixtures import streams

ROOT = Path(__file__).resolve().parents[4]
RATE = streams.RATE
WAVES = [streams.wave(seconds, seed) for seed, seconds in enumerate((0.93, 1.7, 3.3))]
LAYERS = 4


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    """Variants of a transducer on the features that sherpa-onnx computes for one."""
    root = tmp_path_factory.mktemp("recipe")
    return make(root, "transformer", ("merged", "shared", "whole+8b", "whole+4b"))


def make(root: Path, kind: str, variants: tuple[str, ...]) -> Path:
    """Deploy variants of a streaming encoder of a kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 30)
        conf = {"frontend_conf": {"definition": "nemo"}, "encoder": f"residual_streaming_{kind}"}
        patch.setattr(streams, "ESPNET", {**streams.ESPNET, **conf})
        streams.make(root, variants=variants)
    return root / "exp/tiny/deploy"


@pytest.fixture(autouse=True)
def _random_models(monkeypatch):
    """Rounded activations change a text of a model of random weights now and then."""
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)
    monkeypatch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 30)


@pytest.fixture
def exported(deployed, tmp_path):
    """Export a variant."""

    def make(variant: str, name: str = "onnx", **options) -> Path:
        export(Bundle.of_folder(deployed / variant), tmp_path / name, WAVES, **options)
        return tmp_path / name

    return make


@pytest.mark.parametrize("variant", ["merged", "shared", "whole+8b", "whole+4b"])
def test_a_stream_gives_torchs_texts_chunk_by_chunk(deployed, exported, variant):
    streams_alike(deployed / variant, exported(variant, products="float32"))


@pytest.mark.parametrize("variant", ["merged", "shared", "whole+4b"])
def test_a_conformer_streams_as_in_torch_and_in_sherpa_onnx(variant, tmp_path):
    """The states of its convolutions are in the contract's second cache."""
    made = make(tmp_path, "conformer", (variant,)) / variant
    export(Bundle.of_folder(made), tmp_path / "onnx", WAVES, products="float32")
    streams_alike(made, tmp_path / "onnx")
    sherpa_streams(tmp_path / "onnx")


def streams_alike(deployed: Path, folder: Path) -> None:
    """An exported folder prints what torch prints, after the same pieces."""
    source = SpeechInput(RATE, definition="nemo")
    torchs = TransducerStreamer(deployed, "transducer_greedy", {}, source)
    ours = OnnxStreamer(folder)
    assert ours.piece == torchs.piece == 2560
    for wave in WAVES:
        pieces = np.split(wave, range(ours.piece, len(wave), ours.piece))
        timings = Timing(), Timing()
        wanted = list(torchs.run(pieces, timings[0]))
        found = list(ours.run(pieces, timings[1]))
        assert [p._replace(text=p.text.strip()) for p in found] == [
            p._replace(text=p.text.strip()) for p in wanted
        ]
        assert len({p.text for p in found}) > 3
        assert timings[0].delays.count == timings[1].delays.count


def test_the_recogniser_gives_torchs_words_and_places(deployed, exported):
    folder = exported("merged", products="float32")
    torchs = espnet_ext.load(deployed / "merged", method="transducer_greedy")
    ours = espnet_ext.load(folder)
    for wave in WAVES:
        (one,), (other,) = ours(wave, RATE).segments, torchs(wave, RATE).segments
        assert one.words == other.words
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


@pytest.mark.parametrize(
    ("variant", "products"), [("shared", "float32"), ("whole+8b", "uint8"), ("whole+4b", "uint8")]
)
def test_sherpa_onnx_streams_it_unchanged(exported, variant, products):
    sherpa_streams(exported(variant, products=products))


def sherpa_streams(folder: Path) -> None:
    """Its greedy search takes several tokens of a frame; so does the search here."""
    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
        **{name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        num_threads=1,
    )
    model, compared = Model(folder), 0
    for wave in WAVES:
        wave = np.append(wave, np.zeros(RATE // 2, np.float32))
        theirs, ours = recogniser.create_stream(), Stream(model)
        tokens: list[int] = []
        for piece in np.split(wave, range(2560, len(wave), 2560)):
            theirs.accept_waveform(RATE, piece)
            while recogniser.is_ready(theirs):
                recogniser.decode_stream(theirs)
            for frame in ours.encode(piece):
                for _ in range(10):
                    token = int(ours.scores(frame).argmax())
                    if token == ours.blank:
                        break
                    tokens.append(token)
                    ours.feed(token)
            # A frame may be complete here one piece before it is there.
            found = list(recogniser.tokens(theirs))
            wanted = [model.symbols[t].replace("\u2581", " ") for t in tokens]
            assert found == wanted[: len(found)]
            assert len(found) >= len(wanted) - 40
            compared += len(found)
        assert len(found) > 10
    assert compared > 100


def test_layers_that_share_are_stored_once(deployed, exported):
    counts = {}
    for variant in ("merged", "shared"):
        folder = exported(variant, variant, products="float32")
        weights = [
            one
            for one in onnx.load(folder / "encoder.onnx").graph.initializer
            if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2
        ]
        counts[variant] = sum(list(one.dims) in ([8, 8], [1, 64]) for one in weights)
    assert counts["merged"] >= 6 * LAYERS
    assert counts["shared"] <= counts["merged"] / 2 + 4


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_those_of_the_packed_file(deployed, exported, bits):
    folder = exported(f"whole+{bits}b", products="uint8")
    stored = read_member(deployed / f"whole+{bits}b" / PACKED)
    integers = {n: w for n, w in stored.items() if isinstance(w, Quantised)}
    assert any("decoder.decoder.0.weight_hh_l0" in name for name in integers)
    settings = json.loads((folder / "model.json").read_text())
    assert settings["weights_in_bits"] == {
        str(bits): sum(w.ints.numel() for w in integers.values())
    }
    constants = [
        onnx.numpy_helper.to_array(one).astype(np.int64).ravel()
        for name in ("encoder", "decoder", "joiner")
        for one in onnx.load(folder / f"{name}.onnx").graph.initializer
        if one.data_type != onnx.TensorProto.FLOAT
    ]
    table = integers["decoder.embed.weight"].ints.numpy().astype(np.int64).ravel()
    assert any(np.array_equal(one, table) for one in constants)
    floats = [
        int(np.prod(one.dims))
        for name in ("encoder", "decoder", "joiner")
        for one in onnx.load(folder / f"{name}.onnx").graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT
    ]
    assert max(floats) <= 160  # biases, scales, statistics, the table of distances


@pytest.mark.parametrize("bits", [8, 4])
def test_a_float_model_is_rounded_on_request(exported, bits):
    small, whole = exported("shared", "small", bits=bits), exported("shared", "whole")
    sizes = [sum(p.stat().st_size for p in folder.iterdir()) for folder in (small, whole)]
    assert sizes[0] < sizes[1]
    counted = json.loads((small / "model.json").read_text())["weights_in_bits"]
    assert counted.keys() == {str(bits)}


def test_the_verb_streams_an_exported_model_and_says_what_does_not(exported, tmp_path, capsys):
    import soundfile

    folder, speech = exported("merged", products="float32"), tmp_path / "speech.wav"
    soundfile.write(speech, WAVES[2], RATE, "FLOAT")

    def printed(*words: str) -> list[str]:
        parser = argparse.ArgumentParser()
        transcribe.add_arguments(parser)
        transcribe.run(parser.parse_args([str(folder), str(speech), *words]))
        return capsys.readouterr().out.splitlines()

    lines = printed("--stream")
    assert len(lines) > 5 and "s |" in lines[-1] and "s |" not in lines[0]
    assert printed() == [lines[-1].partition("|")[2].strip()]
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**settings, "kind": "ctc"}))
    (folder / "model.onnx").symlink_to("encoder.onnx")
    with pytest.raises(UserError, match="does not stream: leave out --stream"):
        printed("--stream")


@pytest.mark.parametrize(
    ("espnet", "message"),
    [
        ({"encoder_conf": {"history_ms": 0}}, "history_ms 0: the contract needs a history"),
        ({"decoder_conf": {"rnn_type": "gru"}}, "rnn_type gru: the contract needs lstm"),
        (
            {"encoder": "conformer", "encoder_conf": None},
            "encoder conformer: of transducers only streaming ones are exported",
        ),
    ],
)
def test_what_the_contract_does_not_hold_is_one_line(espnet, message, tmp_path, monkeypatch):
    conf = {
        key: {**streams.ESPNET.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in espnet.items()
    }
    if conf.get("encoder_conf", 0) is None:
        conf["encoder_conf"] = {"output_size": 8, "attention_heads": 2, "num_blocks": 1}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streams, "ESPNET", {**streams.ESPNET, **conf})
    streams.make(tmp_path, variants=("merged",))
    with pytest.raises(UserError, match=message):
        export(Bundle.of_folder(tmp_path / "exp/tiny/deploy/merged"), tmp_path / "onnx", WAVES)
    assert not (tmp_path / "onnx").exists()
    assert os.listdir(tmp_path / "exp/tiny/deploy") == ["merged"]


@pytest.mark.parametrize("geometry", [{"lookahead_ms": 0}, {"history_ms": 40}, {"chunk_ms": 320}])
def test_chunks_of_other_sizes(geometry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams.make(tmp_path, variants=("merged",), **geometry)
    bundle = Bundle.of_folder(tmp_path / "exp/tiny/deploy/merged")
    made = export(bundle, tmp_path / "onnx", WAVES, products="float32")
    assert made.difference < 1e-4  # from torch's encoder, which hears the whole
    model, wave = Model(tmp_path / "onnx"), WAVES[2]
    whole, stream = Stream(model).encode(wave, last=True), Stream(model)
    pieces = np.split(wave, range(1000, len(wave), 1000))
    parts = [stream.encode(piece) for piece in pieces[:-1]] + [stream.encode(pieces[-1], True)]
    assert sum(len(part) > 0 for part in parts) > 5
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_statistics_of_whole_utterances_do_not_stream(deployed):
    decoder = decoder_of(Bundle.of_folder(deployed / "merged"), "transducer_greedy")
    decoder.model.normalize = UtteranceMVN()
    with pytest.raises(UserError, match="a stream needs normalize: global_mvn"):
        transducer.refuse(decoder)


def test_numbers_that_are_not_finite_are_no_agreement(deployed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "espnet_ext.export.traced.transducer.JoinerStep.forward",
        lambda _, encoded, predicted: (
            (encoded[..., :1, :] * predicted[..., :1, :] * float("nan"))
            .unsqueeze(1)
            .expand(1, 1, 1, len(streams.TOKENS))
        ),
    )
    with pytest.raises(UserError, match="differ from torch's by inf"):
        export(Bundle.of_folder(deployed / "merged"), tmp_path / "onnx", WAVES)
    assert not (tmp_path / "onnx").exists()


def test_a_stream_that_is_too_short_is_one_line(exported):
    streamer = OnnxStreamer(exported("merged"))
    with pytest.raises(UserError, match="less than a window of 25 ms"):
        list(streamer.run([WAVES[0][:160]], Timing()))
    assert streamer.doubts(Timing())  # silence, and less than a chunk


def test_the_benchmark_times_every_system(deployed, tmp_path):
    import soundfile

    speech, target = tmp_path / "speech.wav", tmp_path / "chunks.json"
    soundfile.write(speech, WAVES[2], RATE)
    program = [sys.executable, str(ROOT / "benchmarks/chunk_latency.py"), str(speech)]
    words = [str(deployed / "shared"), "--bits", "8", "--chunks", "20", "--json", str(target)]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(target.read_text())["measured"]["results"]
    assert row["times"].keys() == {"encoder", "token", "onnx", "sherpa", "torch"}
    assert all(len(times) == 20 and min(times) >= 0 for times in row["times"].values())
    assert sum(row["times"]["torch"]) > sum(row["times"]["token"]) > 0


def test_on_other_features_sherpa_onnx_is_not_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams.make(tmp_path, variants=("merged",))
    bundle = Bundle.of_folder(tmp_path / "exp/tiny/deploy/merged")
    export(bundle, tmp_path / "onnx", WAVES, products="float32")
    settings = json.loads((tmp_path / "onnx/model.json").read_text())
    assert settings["features"] == "kaldi" and "sherpa_onnx" not in settings
    wanted = espnet_ext.load(tmp_path / "exp/tiny/deploy/merged", method="transducer_greedy")
    ours = espnet_ext.load(tmp_path / "onnx")
    assert ours(WAVES[1], RATE).text.split() == wanted(WAVES[1], RATE).text.split()
