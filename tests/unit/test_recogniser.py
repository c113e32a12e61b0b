"""Deployed models that were moved away from their recipe, and what they find in recordings."""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import espnet_ext
from espnet_ext.bridge.deployed.bundle import about
from espnet_ext.bridge.deployed.family import write_family_models
from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.cli import transcribe
from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import weights_file
from tests.fixtures import families

ROOT = Path(__file__).parents[2]
RATE = families.RATE
VARIANTS = ("3L-64-32b", "1L-24-4b", "merged")


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> Path:
    """Variants of a family, and its family file, far from the recipe, which is gone."""
    root = tmp_path_factory.mktemp("recipe")
    options = {"depths": [3, 1], "widths": [64, 24], "bits": [32, 4], "kl_decoder": 0.0}
    exp = families.make(root, **options)
    speech = Speech([torch.from_numpy(families.wave(1.0))], SpeechInput(RATE))
    config = load_config(root / "conf/train_family.yaml")
    for variant in VARIANTS:
        experiment = Experiment.of(config, variant, root)
        deploy_experiment(experiment, exp / "1epoch.pth", speech)
    said = about(experiment, speech.source)
    file = exp / "deploy/family/family.safetensors"
    write_family_models(exp / "config.yaml", exp / "1epoch.pth", speech, file, said)
    away = tmp_path_factory.mktemp("elsewhere") / "models"
    shutil.move(exp / "deploy", away)
    shutil.rmtree(root)
    return away


@pytest.fixture(scope="module")
def model(moved):
    return espnet_ext.load(moved / "merged")


def refused(action, *words) -> str:
    with pytest.raises(UserError) as caught:
        action(*words)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_deployed_folder_names_no_path_outside(moved):
    for variant in VARIANTS:
        for path in (moved / variant).rglob("*.[yj][as][mo]*"):
            text = path.read_text(encoding="utf-8")
            assert "recipe" not in text.replace("recipe0", "recipe") and "exp/" not in text, path
            assert "/tmp" not in text and "data/" not in text, path


def test_stock_espnet_opens_the_folder_as_its_working_folder(moved, model):
    code = (
        "import sys, numpy as np, torch\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'espnet_ext': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from espnet2.bin.asr_inference import Speech2Text\n"
        "stock = Speech2Text('config.yaml', 'model.pth', ctc_weight=1.0, beam_size=1)\n"
        "feats = torch.from_numpy(np.load(sys.argv[1]))[None]\n"
        "encoded, _ = stock.asr_model.encode(feats, torch.tensor([feats.shape[1]]))\n"
        "np.save(sys.argv[1], stock.asr_model.ctc.log_softmax(encoded)[0].detach().numpy())\n"
    )
    wave = torch.from_numpy(families.wave(1.5, 5))
    feats = model.decoder.source.prepared(wave, 20).numpy()
    file = moved.parent / "feats.npy"
    np.save(file, feats)
    words = [sys.executable, "-P", "-c", code, str(file)]
    subprocess.run(words, cwd=moved / "merged", check=True, capture_output=True)
    ours = model.decoder.model
    with torch.no_grad():
        encoded, _ = ours.encode(torch.from_numpy(feats)[None], torch.tensor([len(feats)]))
        wanted = ours.ctc.log_softmax(encoded)[0].numpy()
    np.testing.assert_allclose(np.load(file), wanted, atol=1e-5)


def test_stock_espnet_decodes_samples_where_the_frontend_is_its_own(tmp_path):
    import yaml
    from espnet2.bin.asr_inference import Speech2Text

    fragment = yaml.safe_load((ROOT / "egs/conf/features/espnet.yaml").read_text())
    base = {**families.ESPNET, **fragment}
    base["frontend_conf"] = {**fragment["frontend_conf"], "n_mels": 20}
    exp = families.make(tmp_path, base, depths=[3, 1], bits=[32, 4], kl_decoder=0.0)
    speech = Speech([torch.from_numpy(families.wave(1.0))], SpeechInput(RATE))
    experiment = Experiment.of(load_config(tmp_path / "conf/train_family.yaml"), "merged", tmp_path)
    deploy_experiment(experiment, exp / "1epoch.pth", speech)
    ours = espnet_ext.load(experiment.deployed)
    with contextlib.chdir(experiment.deployed):
        stock = Speech2Text("config.yaml", "model.pth", ctc_weight=1.0, beam_size=1)
    wave = families.wave(1.5, 5)
    given = torch.from_numpy(wave)[None], torch.tensor([len(wave)])
    with torch.no_grad():
        wanted, _ = stock.asr_model.encode(*given)
        found, _ = ours.decoder.model.encode(*given)
    assert torch.equal(wanted, found)
    assert ours(wave, RATE).text


def test_stock_espnet_opens_an_archive_of_the_folder_by_its_path(moved, tmp_path, monkeypatch):
    from espnet2.bin.asr_inference import Speech2Text

    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # espnet_model_zoo unpacks archives there
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", moved / "merged")
    stock = Speech2Text.from_pretrained(archive, ctc_weight=1.0, beam_size=1)
    state = torch.load(moved / "merged/model.pth", weights_only=True)
    for name, tensor in stock.asr_model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert stock.asr_model.token_list == families.TOKENS
    assert list((tmp_path / "home").rglob("meta.yaml"))


def test_words_have_rising_times_and_the_tokens_of_an_independent_search(model):
    wave = families.wave(2.5, 3)
    found = model(wave, RATE)
    (segment,) = found.segments
    assert found.text == segment.text and found.seconds == pytest.approx(2.5)
    assert (segment.start, segment.end) == (0.0, 2.5)
    feats = model.decoder.source.prepared(torch.from_numpy(wave), 20)
    asr = model.decoder.model
    with torch.no_grad():
        encoded, _ = asr.encode(feats[None], torch.tensor([len(feats)]))
        scores = asr.ctc.log_softmax(encoded)[0]
    tokens, best, before = [], [], -1
    for frame, token in enumerate(scores.argmax(-1).tolist()):
        if token not in (before, 0):
            tokens.append(families.TOKENS[token])
            best.append((scores[frame, token].item(), frame))
        before = token
    text = "".join(tokens).replace("<space>", " ")
    assert found.text.split() == text.split()
    assert segment.confidence == pytest.approx(np.exp(np.mean([score for score, _ in best])))
    assert [word.word for word in segment.words] == text.split()
    times = [word.start for word in segment.words]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 2.5
    first = best[0][1] / len(scores) * 2.5
    assert times[0] == pytest.approx(first, abs=2e-3)


def test_rate_and_channels_do_not_matter(model, tmp_path):
    import soxr

    wave = families.wave(2.0, 4)
    text = model(wave, RATE).text
    assert text
    stereo = np.stack([wave, wave], 1)
    assert model(stereo, RATE).text == text
    assert model(torch.from_numpy(wave), RATE).text == text
    path = tmp_path / "speech.flac"
    up = soxr.resample(wave, RATE, 48000, quality="HQ")
    soundfile.write(path, np.stack([up, up], 1), 48000, "PCM_24")
    again = model(soxr.resample(up, 48000, RATE, quality="HQ"), RATE)
    found = model.file(path)
    assert found.text == again.text and found.seconds == pytest.approx(2.0)


def test_the_verb_transcribes_standard_input_as_the_file(moved, tmp_path, monkeypatch, capsys):
    path = tmp_path / "speech.wav"
    soundfile.write(path, families.wave(2.5, 3), RATE, "PCM_16")
    parser = argparse.ArgumentParser()
    transcribe.add_arguments(parser)
    found = []
    for source in (str(path), "-"):
        stdin = io.BytesIO(path.read_bytes() if source == "-" else b"")
        monkeypatch.setattr("sys.stdin", argparse.Namespace(buffer=stdin))
        transcribe.run(parser.parse_args([str(moved / "merged"), source, "--json"]))
        found.append(json.loads(capsys.readouterr().out))
    assert [one.pop("file") for one in found] == [str(path), "-"]
    assert found[0] == found[1] and found[0]["text"]


def test_a_long_recording_is_cut_at_pauses_and_silence_has_no_text(model):
    speech, pause = families.wave(20.0, 6), np.zeros(3 * RATE, np.float32)
    found = model(np.concatenate([speech, pause, speech]), RATE)
    assert len(found.segments) == 2
    cut = found.segments[0].end
    assert 20 < cut < 23 and found.segments[1].start == cut
    assert found.text == " ".join(segment.text for segment in found.segments)
    silent = model(1e-4 * speech, RATE)
    assert silent.text == "" and silent.segments[0].confidence is None
    tick = model(0.5 * np.ones(8, np.float32), RATE)
    assert tick.seconds == pytest.approx(8 / RATE)


def test_the_largest_variant_that_fits_is_loaded(moved):
    sizes = {variant: weights_file(moved / variant).stat().st_size for variant in VARIANTS}
    wave = families.wave(2.0, 4)
    texts = {variant: espnet_ext.load(moved / variant)(wave, RATE).text for variant in VARIANTS}
    assert len(set(texts.values())) == 2
    small = espnet_ext.load(moved / "family", max_bytes=sizes["1L-24-4b"])
    assert small(wave, RATE).text == texts["1L-24-4b"]
    folders = moved.parent / "folders"
    for variant in VARIANTS:
        shutil.copytree(moved / variant, folders / variant, dirs_exist_ok=True)
    assert espnet_ext.load(folders)(wave, RATE).text == texts["merged"]
    fitting = espnet_ext.load(folders, max_bytes=sizes["1L-24-4b"])
    assert fitting(wave, RATE).text == texts["1L-24-4b"]
    for variant, error in zip(VARIANTS, (0.2, 0.1, 0.3), strict=True):  # what each scored
        measured = {"set": "test", "method": "ctc_greedy", "metric": "wer"}
        scores = [{"direction": -1, "value": error, **measured}]
        (folders / variant / "scores.json").write_text(json.dumps(scores))
    assert espnet_ext.load(folders)(wave, RATE).text == texts["1L-24-4b"]
    scores[0]["set"] = "dev"  # errors on different sets do not compare: by size again
    (folders / variant / "scores.json").write_text(json.dumps(scores))
    assert espnet_ext.load(folders)(wave, RATE).text == texts["merged"]
    weights = weights_file(moved / "1L-24-4b")
    assert espnet_ext.load(weights)(wave, RATE).text == texts["1L-24-4b"]
    assert "the smallest has" in refused(lambda: espnet_ext.load(folders, max_bytes=10))
    assert "more than 10 bytes" in refused(lambda: espnet_ext.load(weights, max_bytes=10))


def test_the_best_variant_that_is_fast_enough_here_is_loaded(moved, tmp_path, monkeypatch):
    from espnet_ext.bridge.decoding import real_time_factor

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders, wave = tmp_path / "folders", families.wave(2.0, 4)
    for variant in VARIANTS[:2]:
        shutil.copytree(moved / variant, folders / variant)
    texts = [espnet_ext.load(folders / variant)(wave, RATE).text for variant in VARIANTS[:2]]
    measured: list[float] = []

    def slow(decoder) -> float:
        measured.append(0.4 if len(decoder.model.encoder.encoders) == 3 else 0.1)
        return measured[-1]

    with monkeypatch.context() as patch:
        patch.setattr(real_time_factor, "measure", slow)
        assert espnet_ext.load(folders, max_rtf=0.5)(wave, RATE).text == texts[0]
        assert espnet_ext.load(folders, max_rtf=0.2)(wave, RATE).text == texts[1]
        assert measured == [0.4] * 3 + [0.1] * 3  # once for each
        said = refused(lambda: espnet_ext.load(folders, max_rtf=0.05))
        assert "the fastest has 0.1" in said and len(measured) == 6
    family = espnet_ext.load(moved / "family", max_rtf=1e3)  # measured, whatever it is
    assert family(wave, RATE).text == texts[0]
    known = json.loads(real_time_factor.cache_file().read_text())
    assert len(known) == 3 and all(value > 0 for value in known.values())
    real_time_factor.cache_file().write_text("damaged")
    assert espnet_ext.load(moved / "family", max_rtf=1e3).rate == RATE


def test_another_method_is_that_of_the_config(moved):
    said = refused(lambda: espnet_ext.load(moved / "merged", method="ctc_gredy"))
    assert "did you mean 'ctc_greedy'" in said


def test_bad_input_is_one_line(moved, model, tmp_path):
    assert "no samples" in refused(model, np.zeros(0, np.float32), RATE)
    assert "no samples" in refused(model, np.zeros((2, 3, 4), np.float32), RATE)
    assert "NaN" in refused(model, np.array([0.1, np.nan] * 9000, np.float32), RATE)
    assert "expected -1 to 1" in refused(model, 9000 * families.wave(1.0), RATE)
    assert "give a folder" in refused(espnet_ext.load, tmp_path / "none")
    assert "give a folder" in refused(espnet_ext.load, tmp_path)
    assert "device cdua" in refused(espnet_ext.load, moved / "merged", "cdua")
    said = refused(lambda: espnet_ext.load(moved / "merged", beam=3))
    assert "a beam is for a Whisper or a transducer, without a method" in said
    parser = argparse.ArgumentParser()
    transcribe.add_arguments(parser)
    (tmp_path / "a.wav").touch()
    words = [str(moved / "merged"), str(tmp_path / "a.wav"), "--stream", "--beam", "3"]
    assert "leave out --beam" in refused(lambda: transcribe.run(parser.parse_args(words)))
    torn = Path(shutil.copytree(moved / "merged", tmp_path / "torn"))
    (torn / "tokens.txt").unlink()
    assert "tokens.txt" in refused(espnet_ext.load, torn)
    content = json.loads((moved / "merged/deploy.json").read_text())
    assert "tokens.txt" in content["sha256"]
