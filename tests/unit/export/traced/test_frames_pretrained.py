"""Classifiers on pretrained models as graphs: as an encoder, and as features of another one."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from espnet_ext.bridge.build import build_model
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.config.training import load_config
from espnet_ext.data.ssl_model import read_ssl
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.features import LayerFeatures, save_model
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.export.folder import export
from espnet_ext.export.traced import frames
from espnet_ext.formats.bits import Quantised
from tests.fixtures import families, probe, speech_models
from tests.fixtures.miniature import ROOT

WAVES = [0.2 * np.random.default_rng(n).standard_normal(n).astype("f") for n in (1200, 9000, 31000)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier whose encoder is replaced by one of the same width."""
    recipe = probe.make(tmp_path_factory.mktemp("pretrained"))
    config = load_config(recipe / probe.CONFIG)
    sizes = speech_models.TINY["whisper"] | {"d_model": speech_models.WIDTH}
    config.espnet["encoder_conf"] = {"architecture": sizes}
    built = build_model(Experiment.of(config, root=recipe)).eval()
    speech_models.randomise(built)
    return built


def decoder_of(classifier, folder, on_features):
    """What an export reads of a deployed classifier on the model in a folder."""
    classifier.encoder = StackEncoder(1, path=str(folder)).eval()
    classifier.frontend = None
    if on_features:
        classifier.frontend = LayerFeatures(read_ssl(folder, [1, 3]))
        width = classifier.frontend.output_size()
        classifier.encoder = _Linear(width, speech_models.WIDTH)
    return SimpleNamespace(model=classifier, width=None, source=SpeechInput(16000))


class _Linear(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs)

    def forward(self, x, lengths):
        return self.linear(x).tanh(), lengths, None


@pytest.mark.parametrize("on_features", [False, True])
@pytest.mark.parametrize(("family", "large"), speech_models.ALL)
def test_graphs_score_as_espnets_model(classifier, family, large, on_features, tmp_path):
    graphs_score_alike(classifier, family, large, on_features, tmp_path)


def test_short_speech_is_filled_up_in_the_graph_too(classifier, tmp_path):
    """To 1.2 s, which is longer than some of the speech and shorter than other."""
    graphs_score_alike(classifier, "wav2vec2", False, False, tmp_path, pad_to=1.2)


def graphs_score_alike(classifier, family, large, on_features, tmp_path, pad_to=0.0) -> None:
    from onnxruntime import InferenceSession

    speech_models.make(tmp_path / "model", family, large)
    decoder = decoder_of(classifier, tmp_path / "model", on_features)
    decoder.model.encoder.pad_to = round(16000 * pad_to)
    wanted = [frames.scores(decoder, torch.from_numpy(wave)).numpy() for wave in WAVES]
    assert np.ptp(np.stack(wanted), 0).max() > 1e-3  # the utterances differ
    frames.write(decoder, {}, tmp_path, "float32")
    prepare, model = (
        InferenceSession(tmp_path / f"{name}.onnx") for name in ("preprocess", "model")
    )
    for wave, scores in zip(WAVES, wanted, strict=True):
        (x,) = prepare.run(None, {"audio": wave[None]})
        found, _ = model.run(None, {"x": x, "x_lens": np.array([x.shape[1]])})
        np.testing.assert_allclose(found[0], scores, atol=2e-4)


@pytest.mark.parametrize("family", ["whisper", "wavlm"])
def test_a_saved_model_has_the_layers_that_are_needed_and_no_more(family, tmp_path):
    speech_models.make(tmp_path / "model", family, False)
    save_model(read_ssl(tmp_path / "model", [2, 0]), tmp_path / "saved")
    wave, length = torch.from_numpy(WAVES[1])[None], torch.tensor([len(WAVES[1])])
    whole, less = (LayerFeatures(read_ssl(tmp_path / name, [2, 0])) for name in ("model", "saved"))
    assert (whole.stack.num_layers, less.stack.num_layers) == (speech_models.LAYERS, 2)
    assert torch.equal(whole(wave, length)[0], less(wave, length)[0])
    with pytest.raises(UserError, match="layer must be from 0 to 2"):
        read_ssl(tmp_path / "saved", [3])


@pytest.mark.parametrize("name", ["conformer", "convtransformer", "speechformer", "rnn", "pooled"])
def test_classifiers_of_the_recipes_score_as_graphs(name, tmp_path):
    """Of speech longer and shorter than what is traced."""
    from onnxruntime import InferenceSession

    root = ROOT / "egs/hedgewars/ser1"
    experiment = Experiment.of(load_config(root / f"conf/train_{name}_s.yaml"), root=root)
    torch.manual_seed(1)
    model = speech_models.randomise(build_model(experiment, 5))
    model.frontend = None  # deployed: features in
    source = SpeechInput(experiment.rate, experiment.deltas)
    decoder = SimpleNamespace(model=model, width=experiment.feature_width, source=source)
    frames.write(decoder, {}, tmp_path, "float32")
    prepare, graph = (
        InferenceSession(tmp_path / f"{name}.onnx") for name in ("preprocess", "model")
    )
    waves = [np.tile(WAVES[1], 6), WAVES[1]]  # 340 and 56 frames; 150 are traced
    for wave in waves:
        scores = frames.scores(decoder, torch.from_numpy(wave)).numpy()
        (x,) = prepare.run(None, {"audio": wave[None]})
        found, _ = graph.run(None, {"x": x, "x_lens": np.array([x.shape[1]])})
        np.testing.assert_allclose(found[0], scores, atol=5e-4)
    with torch.no_grad():
        assert np.ptp([frames.scores(decoder, torch.from_numpy(w)).numpy() for w in waves], 0).max()


def test_a_packed_model_on_large_features_is_exported(tmp_path):
    """Its features are frozen, in float32, and much larger than its packed file."""
    import transformers

    bundle = Bundle.of_folder(families.deployed(tmp_path, ("3L-64-8b",)) / "3L-64-8b")
    sizes = {"d_model": 20, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 1}
    sizes |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 20_000, "decoder_ffn_dim": 8}
    config = transformers.WhisperConfig(vocab_size=20, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    transformers.WhisperModel(config).save_pretrained(bundle.path.parent / "features")
    (bundle.path.parent / "deploy.json").unlink()  # which has digests of another folder
    wide = dataclasses.replace(bundle, source=dataclasses.replace(bundle.source, layers=(1,)))
    made = export(wide, tmp_path / "onnx", [families.wave(1.1), families.wave(2.0)])
    assert made.bytes > 3 << 20 > 2 * bundle.path.stat().st_size + (1 << 20)
    stored = wide.stored().values()
    assert made.rounded == {8: sum(w.ints.numel() for w in stored if isinstance(w, Quantised))}
