"""The whole recipe on a miniature corpus that is learnt in seconds, as a user runs it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import yaml

from espnet_ext.config.training import load_config
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.experiment import Experiment
from espnet_ext.results.schema import Result
from espnet_ext.validation import parse
from tests.fixtures import forked, miniature
from tests.fixtures.stock import stock_decoding

SETS = ("test", "unseen")
METHODS = ("ctc_greedy", "ctc_att_beam")


class Recipe:
    """A miniature recipe and how to run it."""

    def __init__(self, folder: Path):
        self.path, self.package, self.environment = miniature.make(folder)
        self.first = subprocess.CompletedProcess([], 1)

    def run(self, tag: str, *options: str) -> subprocess.CompletedProcess:
        """Run run.sh on one core, where ESPnet's sums repeat."""
        words = ["--config", f"conf/train_{tag}.yaml", "--package", str(self.package)]
        return subprocess.run(
            [self.path / "run.sh", *words, "--nj", "1", *options],
            cwd=self.path,
            env=self.environment,
            preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
            capture_output=True,
            text=True,
            check=False,
        )

    def text(self, method: str, name: str) -> dict[str, str]:
        """The hypotheses of stage 6 by utterance."""
        return read_table(self.path / "exp/tiny/decode/merged" / method / name / "text")

    def read(self, name: str) -> Any:
        """A JSON file of the experiment."""
        return json.loads((self.path / "exp/tiny" / name).read_text())

    def times(self) -> dict[str, int]:
        """When each file of data and experiment was written; logs and locks grow at any run."""
        files = [p for n in ("data", "dump", "exp") for p in (self.path / n).rglob("*")]
        return {
            str(p.relative_to(self.path)): p.stat().st_mtime_ns
            for p in files
            if p.is_file() and p.parent.name != "log" and p.name != ".lock"
        }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe after all eight stages."""
    made = Recipe(tmp_path_factory.mktemp("pipeline"))
    miniature.write_config(made.path, "tiny")
    made.first = made.run("tiny")
    assert made.first.returncode == 0, made.first.stdout[-3000:] + made.first.stderr
    made.environment = miniature.environment(made.path.parent / "environment", quick=True)
    return made


def test_all_stages_run_and_the_table_is_printed(recipe):
    done = re.findall(r"^== stage (\d): done", recipe.first.stdout, re.MULTILINE)
    assert done == list("12345678")
    rows = [line for line in recipe.first.stdout.splitlines() if line.startswith("| tiny")]
    cells = [tuple(cell.strip() for cell in row.split("|")[2:4]) for row in rows]
    assert cells == [(method, name) for method in METHODS for name in SETS]
    assert recipe.first.stderr == ""


def test_the_result_validates_and_its_scores_are_those_of_the_texts(recipe):
    result = recipe.read("result.json")
    parse(Result, result, "result.json")
    scores = {(s["method"], s["set"]): s for s in result["scores"]}
    assert set(scores) == {(m, s) for m in METHODS for s in SETS}
    for (method, name), score in scores.items():
        references = read_table(recipe.path / "data" / name / "text")
        found = recipe.text(method, name)
        assert list(found) == list(references)
        wer = jiwer.wer(list(references.values()), [found[u] for u in references])
        assert score["metrics"]["wer"]["value"] == pytest.approx(wer, abs=1e-9)
        # The tones are learnt: a model that has learnt nothing scores 1.
        assert 0 <= wer < 0.9


def test_a_second_run_says_up_to_date_and_writes_nothing(recipe):
    before = recipe.times()
    again = recipe.run("tiny")
    assert again.returncode == 0, again.stdout + again.stderr
    stages = re.split(r"^== stage \d: [A-Z].*$", again.stdout, flags=re.MULTILINE)[1:]
    assert len(stages) == 8
    assert all("up to date" in stage for stage in stages), again.stdout
    assert recipe.times() == before


def test_some_stages_alone(recipe):
    one = next((recipe.path / "exp/tiny/decode/merged/ctc_greedy").glob("*/text"))
    before = one.read_bytes()
    one.unlink()
    result = recipe.run("tiny", "--stage", "6", "--stop_stage", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    titles = re.findall(r"^== stage (\d): [A-Z]", result.stdout, re.MULTILINE)
    assert titles == ["6", "7"]
    assert one.read_bytes() == before


def test_options_after_dashes_reach_espnet(recipe):
    miniature.write_config(recipe.path, "short")
    limits = ("--stage", "4", "--stop_stage", "4")
    result = recipe.run("short", *limits, "--", "--max_epoch", "1", "--seed=7")
    assert result.returncode == 0, result.stdout + result.stderr
    config = yaml.safe_load((recipe.path / "exp/short/config.yaml").read_text())
    assert (config["max_epoch"], config["seed"]) == (1, 7)
    train = json.loads((recipe.path / "exp/short/train.json").read_text())
    assert train["epochs"] == 1
    assert (train["seed"], train["config"]["seed"], train["config"]["max_epoch"]) == (7, 7, 1)
    more = recipe.run("short", *limits, "--", "--max_epoch", "2", "--seed=7")
    assert more.returncode == 0, more.stdout + more.stderr
    train = json.loads((recipe.path / "exp/short/train.json").read_text())
    assert (train["epochs"], train["config"]["max_epoch"]) == (2, 2)


def test_the_merged_model_decodes_in_stock_espnet_without_this_package(recipe):
    stock = stock_decoding(recipe.path, "exp/tiny/deploy/merged", SETS)
    assert stock["modules"] == []
    assert stock["kinds"] == ["espnet2", "torch"]
    for method in METHODS:
        for name in SETS:
            assert stock["texts"][method][name] == recipe.text(method, name)
            assert any(recipe.text(method, name).values())  # equal for a reason


@pytest.fixture
def here(recipe, monkeypatch):
    """The recipe's folder as the current one, and ESPnet imported."""
    forked.load()
    monkeypatch.chdir(recipe.path)
    return recipe


def test_the_training_model_gives_the_same_texts(here):
    from espnet_ext.bridge.checkpoint import load_model
    from espnet_ext.bridge.decoding.decoder import Decoder
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    deployed = Path("exp/tiny/deploy/merged")
    trained = load_model(Path("exp/tiny/config.yaml"), averaged())
    assert any("parametrizations" in name for name in trained.state_dict())
    trained.frontend = None  # what is read are its features
    for method, options in miniature.CONFIG["recipe"]["decode"].items():
        decoder = Decoder(deployed, method, options, SpeechInput(16000))
        decoder.model = decoder.inference.asr_model = trained
        decoder.inference.beam_search.scorers["ctc"].ctc = trained.ctc
        decoder.inference.beam_search.scorers["decoder"] = trained.decoder
        for name in SETS:
            found = {u: decoder.texts([f])[0] for u, f in arks(name).items()}
            assert found == here.text(method, name)


def test_the_merged_model_has_the_keys_and_shapes_of_the_plain_conformer(here):
    from espnet_ext.bridge.build import build_model
    from espnet_ext.methods.deploy import parameter_count

    path = Path(miniature.write_config(here.path, "plain", encoder="conformer"))
    config = load_config(path)
    config.espnet["encoder_conf"].pop("hrf")
    experiment = Experiment.of(config)
    plain = build_model(experiment, experiment.vocabulary)
    merged = torch.load("exp/tiny/deploy/merged/model.pth", weights_only=True)
    assert {k: v.shape for k, v in merged.items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    counted = here.read("deploy/merged/deploy.json")["parameters"]["total"]
    assert counted == parameter_count([plain])
    trained = torch.load(averaged(), weights_only=True)
    assert sum(v.numel() for v in trained.values()) > sum(v.numel() for v in merged.values())


def averaged() -> Path:
    """The model that stage 4 left."""
    return Experiment.load("conf/train_tiny.yaml").averaged_model


def arks(name: str) -> dict[str, np.ndarray]:
    """Features (frames, bins) that stage 2 wrote, by utterance."""
    import kaldiio

    return dict(kaldiio.load_scp(f"dump/fbank40/{name}/feats.scp").items())


def test_features_of_the_frontend_are_those_of_the_arks(here):
    from espnet2.fileio.sound_scp import SoundScpReader

    from espnet_ext.encoders.frontends import KaldiFbank

    waves = {u: w for u, (_, w) in SoundScpReader("data/test/wav.scp").items()}
    lengths = torch.tensor([len(wave) for wave in waves.values()])
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(wave).float() for wave in waves.values()], batch_first=True
    )
    feats, frames = KaldiFbank(n_mels=40)(padded, lengths)
    written = arks("test")
    assert list(waves) == list(written)
    for row, count, matrix in zip(feats, frames, written.values(), strict=True):
        np.testing.assert_array_equal(row[:count].numpy(), matrix)


def test_training_of_characters_on_raw_audio_and_on_arks_is_the_same(recipe, tmp_path):
    forked.load()
    losses = {}
    for kind in ("raw", "ark"):
        # Batches by count: by size they would count samples here and frames there.
        config = miniature.write_config(
            recipe.path,
            f"from_{kind}",
            recipe={"features": kind},
            token_type="char",
            batch_type="unsorted",
            batch_size=8,
            max_epoch=2,
        )
        for words in (("tokens", config), ("train", config, "--threads", "1")):
            ended = forked.Command(recipe.path, words, tmp_path / kind).wait()
            assert ended.code == 0, ended.stderr
        checkpoint = recipe.path / f"exp/from_{kind}/checkpoint.pth"
        stats = torch.load(checkpoint, weights_only=True)["reporter"]["stats"]
        losses[kind] = [stats[e][p]["loss"] for e in (1, 2) for p in ("train", "valid")]
    assert losses["raw"] == losses["ark"]
