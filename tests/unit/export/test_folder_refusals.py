"""What no export can do: one line that says what to do, and nothing half-written."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import espnet_ext
from espnet_ext.bridge.decoding.loading import decoder_of
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.cli.main import main
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.kinds import contract_of
from espnet_ext.export.folder import export
from espnet_ext.export.traced import fbank, rounded
from espnet_ext.export.whisper.source import read_whisper, refuse_others
from espnet_ext.formats.bits import Quantised
from tests.fixtures import families, streams

RATE = families.RATE
WAVES = [families.wave(1.1, 0)]


@pytest.fixture(scope="module")
def conformer(tmp_path_factory) -> Bundle:
    """A Conformer with CTC and a Transformer decoder."""
    return Bundle.of_folder(families.deployed(tmp_path_factory.mktemp("r"), ("merged",)) / "merged")


@pytest.fixture(scope="module")
def transducer(tmp_path_factory) -> Bundle:
    """A streaming transducer."""
    root = tmp_path_factory.mktemp("stream")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        streams.make(root, variants=("merged",))
    return Bundle.of_folder(root / "exp/tiny/deploy/merged")


def refused(bundle: Bundle, folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        export(bundle, folder / "onnx", WAVES, **options)
    assert not (folder / "onnx").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exp/x", "--exact", "--runtime", "sherpa"], "leave out --runtime"),
        (["exp/x", "--variant", "merged"], "give the deployed folder"),
        (["exp/x"], "--verify FILE"),
        (["conf/train_x.yaml", "--family", "--variant", "merged"], "leave out --variant"),
        (["conf/train_x.yaml"], "no data/dev/wav.scp; run stage 1"),
        (["conf/train_y.yaml"], "data/empty/wav.scp: no utterance in it"),
    ],
)
def test_options_that_do_not_go_together(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/train_x.yaml").write_text("encoder: conformer\n")
    empty = "encoder: conformer\nrecipe: {dev_set: empty}\n"
    (tmp_path / "conf/train_y.yaml").write_text(empty)
    (tmp_path / "data/empty").mkdir(parents=True)
    (tmp_path / "data/empty/wav.scp").touch()
    monkeypatch.setattr(sys, "argv", ["espnet-ext", "export", *words, "--out", "onnx"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("search", ["ctc", "attention"])
def test_a_search_that_the_model_lacks(conformer, search, tmp_path):
    weight = {"ctc": 0.0, "attention": 1.0}[search]
    other = {**conformer.arguments, "model_conf": {"ctc_weight": weight}}
    bundle = dataclasses.replace(conformer, arguments=other)
    assert "leave out --search" in refused(bundle, tmp_path, search=search)


def test_decoders_that_the_contract_does_not_hold(conformer):
    def said(**changed) -> str:
        decoder = decoder_of(conformer)
        for path, value in changed.items():
            holder, _, name = path.rpartition("__")
            place = decoder.model.get_submodule(holder.replace("__", "."))
            setattr(place, name, value)
        with pytest.raises(UserError) as caught:
            contract = contract_of(conformer, decoder, None, "attention")
            contract.trace(decoder, {}, Path("nowhere"), "float32")
        return str(caught.value)

    assert "of ESPnet's only transformer" in said(decoder__output_layer=None)
    assert "only input_layer: embed" in said(
        decoder__embed=torch.nn.ModuleList([torch.nn.ReLU()] * 2)
    )
    norm = torch.nn.LayerNorm(16)
    assert "qk_norm is not exported" in said(decoder__decoders__0__src_attn__q_norm=norm)


def test_transducers_that_the_contract_does_not_hold(transducer, tmp_path):
    def said(**changed) -> str:
        decoder = decoder_of(transducer)
        for path, value in changed.items():
            holder, _, name = path.rpartition("__")
            setattr(decoder.model.get_submodule(holder.replace("__", ".")), name, value)
        with pytest.raises(UserError) as caught:
            contract_of(transducer, decoder, None).trace(decoder, {}, tmp_path, "float32")
        return str(caught.value)

    assert "of transducers only streaming ones" in said(encoder=torch.nn.Identity())
    assert "needs normalize: global_mvn" in said(normalize=torch.nn.Identity())
    assert "the contract needs lstm" in said(decoder__dtype="gru")
    decoder = decoder_of(transducer)
    history = dataclasses.replace(decoder.model.encoder.geometry, history=0)
    assert "the contract needs a history" in said(encoder__geometry=history)
    deltas = dataclasses.replace(transducer.source, deltas=1)
    with_deltas = dataclasses.replace(transducer, source=deltas)
    assert "log-mel without deltas" in refused(with_deltas, tmp_path)
    assert "this model has no CTC" in refused(transducer, tmp_path, search="ctc")
    assert not list(tmp_path.iterdir())


def test_features_that_no_graph_computes(conformer, tmp_path):
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.asr.frontend.fused import FusedFrontends

    decoder = decoder_of(conformer)
    decoder.model.frontend = torch.nn.Identity()
    decoder.inference.asr_train_args.frontend = FusedFrontends.__name__
    with pytest.raises(UserError, match="frontend: FusedFrontends: the features of this model"):
        contract_of(conformer, decoder, None).trace(decoder, {}, tmp_path, "float32")
    frontend = DefaultFrontend(n_fft=512, center=False)
    with pytest.raises(UserError, match="only center, no enhancement"):
        fbank.EspnetLogMel(frontend)


def test_a_layout_is_of_a_whisper(conformer, tmp_path):
    for layout in ("from_whisper", "from_moonshine"):
        assert f"--layout {layout} is of a Whisper" in refused(conformer, tmp_path, layout=layout)


def test_a_layer_that_cannot_be_rounded():
    layer = torch.nn.Bilinear(2, 2, 2)
    ints = torch.ones(2, 2, 2, dtype=torch.int8)
    weight = {"0.weight": Quantised(ints, torch.ones(2, 1, 1), 8)}
    with pytest.raises(UserError, match="a rounded weight of Bilinear is not exported"):
        rounded.use_integers(torch.nn.Sequential(layer), weight, "float32")


def test_models_that_are_no_whisper_or_have_more_weights(conformer, tmp_path):
    decoder = decoder_of(conformer)
    with pytest.raises(UserError, match="so far only a whole Whisper can be exported"):
        read_whisper(Path("x"), decoder, {}, None)
    assert "leave out --language" in refused(conformer, tmp_path, language="de")
    model = SimpleNamespace(
        encoder="encoder.stack.model.",
        decoder="decoder.decoder.",
        state={"decoder.decoder.embed_tokens.weight": 0, "decoder.adapter.weight": 0},
    )
    with pytest.raises(UserError, match=r"decoder.adapter.weight and 0 more have no place"):
        refuse_others(model, Path("x"))


def test_a_member_of_a_folder_with_one_model(conformer, tmp_path):
    export(conformer, tmp_path / "onnx", WAVES, products="float32")
    from espnet_ext.export.runtime.decoder import OnnxDecoder

    with pytest.raises(UserError, match="has one model: leave out the name"):
        OnnxDecoder(tmp_path / "onnx", member="3L-64-4b")
    decoder = OnnxDecoder(tmp_path / "onnx")
    decoder.classifies, decoder.model.settings["most_seconds"] = True, 30
    with pytest.raises(UserError, match="hears at most 30 s: cut the recording"):
        decoder.decode_waves([np.zeros(31 * RATE, np.float32)])


def test_an_hour_of_speech_is_cut_at_pauses(conformer, tmp_path):
    """By torch and by the graphs; no segment is longer than 30 s, none of the text is lost."""
    export(conformer, tmp_path / "onnx", WAVES, products="float32")
    spoken = np.concatenate([families.wave(9.0, 3), np.zeros(RATE, np.float32)])
    hour = np.tile(spoken, 360)
    assert len(hour) == 3600 * RATE
    found = espnet_ext.load(tmp_path / "onnx")(hour, RATE)
    assert found.seconds == 3600
    lengths = [segment.end - segment.start for segment in found.segments]
    assert max(lengths) <= 30 and sum(lengths) == pytest.approx(3600)
    assert all(segment.text for segment in found.segments)
    short = espnet_ext.load(conformer.path.parent)(hour[: 60 * RATE], RATE)
    places = [[(s.start, s.end) for s in one.segments[:1]] for one in (short, found)]
    assert places[0] == places[1]
    assert short.segments[0].text == found.segments[0].text
