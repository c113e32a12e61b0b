"""CTC models as graphs: torch's texts here, in sherpa-onnx and in batches; a file's integers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import sherpa_onnx
import torch

import espnet_ext
from espnet_ext.bridge.deployed.bundle import Bundle, about
from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.config.training import load_config
from espnet_ext.data.fbank import kaldi_fbank, log_mel
from espnet_ext.data.features import DEFINITIONS
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.export.folder import export
from espnet_ext.export.runtime.run_onnx import Model
from espnet_ext.export.traced.fbank import Fbank
from espnet_ext.files import weights_file
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import read_member
from tests.fixtures import families

RATE = families.RATE
VARIANTS = ("merged", "3L-64-8b", "3L-64-4b", "1L-24-4b")
WAVES = [families.wave(seconds, seed) for seed, seconds in enumerate((1.1, 2.0, 3.3))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Variants of a family."""
    root = tmp_path_factory.mktemp("recipe")
    made = families.deployed(root, VARIANTS)
    config = load_config(root / "conf/train_family.yaml")
    assert about(Experiment.of(config, "merged", root), SpeechInput(RATE))["decode"]
    return made


@pytest.fixture(autouse=True)
def _random_models(monkeypatch):
    """Rounded activations change a text of a model of random weights now and then."""
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.6)


@pytest.mark.parametrize("products", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_find_torchs_texts_and_words(folders, variant, products, tmp_path):
    exact = products == "float32"
    made = export(Bundle.of_folder(folders / variant), tmp_path / "onnx", WAVES, products=products)
    assert made.equal >= (3 if exact else 2) and made.difference < 1e-4
    torchs, ours = espnet_ext.load(folders / variant), espnet_ext.load(tmp_path / "onnx")
    for wave in WAVES:
        wanted, found = torchs(wave, RATE), ours(wave, RATE)
        assert found.text
        if exact:
            assert found.text.split() == wanted.text.split()
            (one,), (other,) = found.segments, wanted.segments
            assert one.words == other.words
            assert one.confidence == pytest.approx(other.confidence, rel=1e-3)
    if variant != "merged":
        stored = read_member(weights_file(folders / variant)).values()
        bits = 8 if variant.endswith("8b") else 4
        count = sum(w.ints.numel() for w in stored if isinstance(w, Quantised))
        assert made.rounded == {bits: count}
        kinds = [node.op_type for node in onnx.load(tmp_path / "onnx/model.onnx").graph.node]
        assert ("MatMulNBits" in kinds) == (exact and bits == 4)
        assert ("DynamicQuantizeMatMul" in kinds) == (not exact)


@pytest.mark.parametrize(("variant", "products"), [("3L-64-4b", "float32"), ("3L-64-8b", "uint8")])
def test_sherpa_onnx_runs_it_unchanged(folders, variant, products, tmp_path):
    """Its sessions have no option for products of 8 bits: uint8 is right without."""
    out = tmp_path / "onnx"
    export(Bundle.of_folder(folders / variant), out, WAVES, products=products)
    recogniser = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(out / "model.onnx"), tokens=str(out / "tokens.txt"), feature_dim=20
    )
    model = Model(out)
    for wave in WAVES:
        stream = recogniser.create_stream()
        stream.accept_waveform(RATE, wave)
        recogniser.decode_stream(stream)
        theirs = list(stream.result.tokens)
        ours = [model.symbols[token] for token in model.tokens(wave)[0]]
        assert [t.strip() for t in theirs] == [t.replace("\u2581", "").strip() for t in ours]


def test_utterances_of_a_batch_keep_their_lengths(folders, tmp_path):
    out = tmp_path / "onnx"
    export(Bundle.of_folder(folders / "merged"), out, WAVES, products="float32")
    decoder = espnet_ext.load(folders / "merged").decoder
    feats = [kaldi_fbank(torch.from_numpy(wave), RATE, 20) for wave in WAVES[:2]]
    padded = torch.nn.utils.rnn.pad_sequence(feats, batch_first=True)
    lengths = torch.tensor([len(one) for one in feats])
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    given = {"x": padded.numpy(), "x_lens": lengths.numpy()}
    found, counts = session.run(None, given)
    with torch.no_grad():
        encoded, wanted = decoder.model.encode(padded.clone(), lengths)
        scores = decoder.model.ctc.log_softmax(encoded).numpy()
    assert counts.tolist() == wanted.tolist()
    np.testing.assert_allclose(found, scores, atol=1e-4)


@pytest.mark.parametrize("source", [{"definition": "nemo"}, {"deltas": 1}])
def test_on_features_of_its_own_sherpa_onnx_is_not_named(folders, source):
    from espnet_ext.bridge.decoding.loading import decoder_of
    from espnet_ext.export.contracts.kinds import contract_of

    bundle = Bundle.of_folder(folders / "merged")
    named = contract_of(bundle, decoder_of(bundle), None).settings()
    assert named["sherpa_onnx"] == "from_zipformer_ctc"
    other = dataclasses.replace(bundle, source=SpeechInput(RATE, **source))
    assert "sherpa_onnx" not in contract_of(other, decoder_of(other), None).settings()


def test_unknown_definitions_of_features_are_refused():
    with pytest.raises(UserError, match="definition must be kaldi or nemo, not 'htk'"):
        SpeechInput(RATE, definition="htk")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_float_model_is_rounded_on_request(folders, bits, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 500)
    bundle = Bundle.of_folder(folders / "merged")
    made = export(bundle, tmp_path / "small", WAVES, bits=bits)
    whole = export(bundle, tmp_path / "whole", WAVES)
    assert made.rounded.keys() == {bits}
    saved = (whole.bytes - made.bytes) / made.rounded[bits]  # of 4 bytes a weight
    assert saved > {8: 2.1, 4: 2.5}[bits]


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize(("bins", "deltas"), [(80, 0), (26, 2)])
def test_the_graphs_features_are_those_of_training(bins, deltas, definition):
    for wave in WAVES:
        options = RATE, bins, deltas, definition
        found = Fbank(*options)(torch.from_numpy(wave)[None])[0]
        wanted = log_mel(torch.from_numpy(wave), *options)
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=1e-3)
        inside = log_mel(torch.from_numpy(wave), *options, snip_edges=True)
        found = Fbank(*options, pieces=True)(torch.from_numpy(wave)[None])[0]
        torch.testing.assert_close(found, inside, atol=5e-3, rtol=1e-3)


def test_the_script_ends_loops_where_torchs_search_does():
    from espnet_ext.export.runtime import run_search
    from espnet_ext.models import attention_search

    found = []
    for tokens in families.looping(3, 300):
        found.append(run_search.loop(tokens))
        assert found[-1] == attention_search.loop(tokens)
    assert 30 < np.count_nonzero(found) < 270


def test_what_no_graph_can_hold_is_one_line_and_writes_nothing(folders, tmp_path, monkeypatch):
    bundle = Bundle.of_folder(folders / "3L-64-4b")

    def refused(**options) -> str:
        with pytest.raises(UserError) as caught:
            export(options.pop("bundle", bundle), tmp_path / "onnx", WAVES, **options)
        assert not (tmp_path / "onnx").exists()
        return str(caught.value)

    assert "leave out --bits" in refused(bits=8)
    with monkeypatch.context() as patch:  # a fault in the graphs
        patch.setattr("espnet_ext.export.traced.fbank.PREEMPHASIS", 0.9)
        assert "differ from torch's" in refused()
    with monkeypatch.context() as patch:
        patch.setattr("espnet_ext.export.traced.frames.Frames.forward", lambda *_: 1 / 0)
        assert "cannot be traced: ZeroDivisionError" in refused()
    export(bundle, tmp_path / "onnx", WAVES)
    path = tmp_path / "onnx/model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "later"}))
    with pytest.raises(UserError, match="unknown kind of model 'later'"):
        espnet_ext.load(tmp_path / "onnx")


def deployed(root: Path, base: dict, variant: str, depth: int = 3) -> Bundle:
    """A variant of a family of ``base``."""
    exp = families.make(root, base, depths=[depth, 1], bits=[32, 4], kl_decoder=0.0)
    speech = Speech([torch.from_numpy(families.wave(1.0))], SpeechInput(RATE))
    experiment = Experiment.of(load_config(root / "conf/train_family.yaml"), variant, root)
    deploy_experiment(experiment, exp / "1epoch.pth", speech)
    return Bundle.of_folder(experiment.deployed)


@pytest.mark.parametrize("search", ["ctc", "attention"])
@pytest.mark.parametrize("window", [{"win_length": 400}, {"win_length": None, "window": None}])
def test_espnets_own_frontend_is_in_the_graphs(search, window, tmp_path, monkeypatch):
    # Texts of random models repeat themselves, which ESPnet's search does not end.
    equal = {"ctc": 3, "attention": 0}[search]
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", equal / 3)
    conf = {"fs": RATE, "n_fft": 512, "hop_length": 160, "n_mels": 20, **window}
    base = {**families.ESPNET, "frontend": "default", "frontend_conf": conf}
    bundle = deployed(tmp_path, base, "3L-64-4b")
    made = export(bundle, tmp_path / "onnx", WAVES, products="float32", search=search)
    assert made.equal >= equal and made.difference < 1e-3
    assert made.rounded.keys() == {4}
    settings = json.loads((tmp_path / "onnx/model.json").read_text())
    # sherpa-onnx computes other features for a CTC model; for attention they are in the graphs.
    assert settings.get("sherpa_onnx") == {"attention": "from_moonshine"}.get(search)


def test_a_family_on_wav2vec_keeps_its_integers(tmp_path):
    bundle = deployed(tmp_path, families.wav2vec2(tmp_path / "model"), "4L-48-4b", 4)
    made = export(bundle, tmp_path / "onnx", WAVES, products="float32")
    assert made.equal == 3 and made.difference < 1e-4
    stored = bundle.stored().values()
    assert made.rounded == {4: sum(w.ints.numel() for w in stored if isinstance(w, Quantised))}
