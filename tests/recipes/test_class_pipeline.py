"""A classification recipe whole, and its grid, on a miniature corpus, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sklearn.metrics import f1_score

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.results.grids import Grid
from espnet_ext.results.schema import Result
from espnet_ext.validation import parse
from tests.fixtures import forked, miniature
from tests.fixtures.acted_voices import hedgewars
from tests.fixtures.ssl_models import WIDTH, make_ssl

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "include": "../../../conf/base/cls.yaml",
    "encoder": "hrf_speechformer",
    "encoder_conf": {
        "output_size": 24,
        "attention_heads": 2,
        "num_blocks": [1, 1, 1, 1],
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "hrf": {"sites": ["ffn", "cls"], "ratio": 2, "factors": 2},
    },
    "decoder_conf": {"dropout": 0.0, "width": 256},  # matrices that are worth rounding
    "batch_bins": 78 * 200,
    "max_epoch": 24,
    "optim_conf": {"lr": 0.004},
    "scheduler_conf": {"warmup_steps": 20},
    "recipe": {"classes": 7, "average": 2, "variants": {"merged": None, "whole+8b": "merged"}},
}
GRID = {
    "split": "voice",
    "seeds": [1, 2],
    "baseline": "hrf_sites-ffn",
    "systems": {
        "hrf": {
            "config": "train_tiny_s.yaml",
            "set": {"max_epoch": 2},
            "vary": {"encoder_conf.hrf.sites": [["ffn"], ["all"]]},
        }
    },
}


class Recipe:
    """A miniature recipe and how to run it."""

    def __init__(self, folder: Path):
        self.path = folder / "tree/egs/hedgewars/ser1"
        self.path.mkdir(parents=True)
        for name in ("utils/recipe.sh", "tools/install.sh", "egs/conf", "egs/hedgewars/ser1/local"):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, target)
        words = hedgewars(folder)
        self.package = words[1]
        script = (ROOT / "egs/hedgewars/ser1/run.sh").read_text()
        said = script.replace("local/data.py ", f"local/data.py --sha256 {words[3]} ")
        assert said != script
        (self.path / "run.sh").write_text(said)
        (self.path / "run.sh").chmod(0o755)
        (self.path / "conf").mkdir()
        for name, content in (("train_tiny_s", CONFIG), ("grid_tiny", GRID)):
            (self.path / f"conf/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.environment = miniature.environment(folder / "environment", quick=True)

    def call(self, *words: str | Path) -> subprocess.CompletedProcess:
        """Run a command on one core, where ESPnet's sums repeat."""
        return subprocess.run(
            [str(word) for word in words],
            cwd=self.path,
            env=self.environment,
            preexec_fn=lambda: os.sched_setaffinity(0, [max(os.sched_getaffinity(0))]),
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *options: str) -> subprocess.CompletedProcess:
        words = ["--config", "conf/train_tiny_s.yaml", "--package", self.package, "--nj", "1"]
        return self.call(self.path / "run.sh", *words, *options)

    def verb(self, *words: str | Path) -> forked.Outcome:
        """Run espnet-ext on that core."""
        core = {max(os.sched_getaffinity(0))}
        listed = tuple(str(word) for word in words)
        command = forked.Command(
            self.path, listed, self.path / "logs", lambda: os.sched_setaffinity(0, core)
        )
        return command.wait(900)

    def grid(self, *options: str) -> forked.Outcome:
        return self.verb("grid", "conf/grid_tiny.yaml", *options)

    def times(self) -> dict[Path, int]:
        return {
            p: p.stat().st_mtime_ns
            for name in ("data", "dump", "exp")
            for p in (self.path / name).rglob("*")
            if p.is_file() and p.parent.name != "log" and p.name != ".lock"
        }


def parsed_json(path: Path) -> dict:
    """The content of a result, whose schema is checked."""
    content = json.loads(path.read_text())
    parse(Result, content, path.name)
    return content


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe after all eight stages."""
    forked.load()
    made = Recipe(tmp_path_factory.mktemp("classes"))
    made.first = made.run()
    assert made.first.returncode == 0, made.first.stdout[-3000:] + made.first.stderr
    return made


def test_all_stages_run_and_the_score_is_that_of_the_decisions(recipe):
    assert re.findall(r"^== stage (\d): done", recipe.first.stdout, re.MULTILINE) == list(
        "12345678"
    )
    result, rounded = (
        parsed_json(recipe.path / f"exp/tiny_s/{name}.json")
        for name in ("result", "result_whole+8b")
    )
    assert rounded["bytes"] < 0.7 * result["bytes"]
    assert [pair["baseline"] for pair in rounded["scores"][0]["comparisons"]] == ["tiny_s/merged"]
    named = read_table(recipe.path / "exp/tiny_s/decode/merged/classify/test/text")
    meant = read_table(recipe.path / "data/test/label")
    assert list(named) == list(meant)
    expected = f1_score(list(meant.values()), list(named.values()), average="weighted")
    score = result["scores"][0]
    assert score["metrics"]["weighted_f1"]["value"] == pytest.approx(expected, abs=1e-9)
    for folder in ("images", "images/whole+8b"):
        assert (recipe.path / f"exp/tiny_s/{folder}/confusion_test.png").is_file()
    assert not (recipe.path / "exp/tiny_s/images/whole+8b/training_curves.png").exists()
    # Tones are learnt: more than naming one class always.
    assert expected > score["majority"]["weighted_f1"]
    assert result["parameters"]["total"] < result["training"]["parameters"]["total"]
    card = (recipe.path / "exp/tiny_s/deploy/merged/README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    (listed,) = yaml.safe_load(metadata)["model-index"]
    (metric,) = listed["results"][0]["metrics"]
    assert metric == {"type": "weighted_f1", "value": pytest.approx(expected, abs=6e-4)}
    assert result["commit"] in body and result["command"] in body
    scores = json.loads((recipe.path / "exp/tiny_s/deploy/merged/scores.json").read_text())
    assert scores[0]["value"] == score["metrics"]["weighted_f1"]["value"]
    assert scores[0]["direction"] == 1


def test_sets_share_the_arks_of_the_whole(recipe):
    dump = recipe.path / "dump/fbank26_d2"
    assert list((dump / "all").glob("*.ark"))
    assert not list((dump / "test").glob("*.ark"))
    whole = read_table(dump / "all/feats.scp")
    part = read_table(dump / "voice-pirate/test/feats.scp")
    assert 0 < len(part) < len(whole)
    assert part.items() <= whole.items()


def test_a_result_is_not_made_of_files_of_different_runs(recipe):
    label = recipe.path / "data/test/label"
    whole = label.read_bytes()
    label.write_bytes(whole.replace(b" joy", b" pain", 1))
    try:
        mixed = recipe.verb("report", "conf/train_tiny_s.yaml")
    finally:
        label.write_bytes(whole)
    assert mixed.code == 1, mixed.stdout
    assert "was made before data/test/label changed; run stage 7" in mixed.stderr
    log = json.loads((recipe.path / "exp/tiny_s/result.json").read_text())["decoding"][0]
    assert log["rtf"] == min(log["rtf_rounds"]) > 0


def test_a_second_run_says_up_to_date_and_writes_nothing(recipe):
    before = recipe.times()
    again = recipe.run()
    assert again.returncode == 0, again.stdout + again.stderr
    stages = re.split(r"^== stage \d: [A-Z].*$", again.stdout, flags=re.MULTILINE)[1:]
    assert all("up to date" in stage for stage in stages), again.stdout
    assert recipe.times() == before


def test_a_grid_runs_in_parts_goes_on_and_is_summarised(recipe):
    dry = recipe.grid("--dry_run")
    assert "12 trainings, 0 of 12 done" in dry.stdout, dry.stderr
    first = recipe.grid("--part", "1/3", "--nj", "2")
    assert first.code == 0, first.stdout + first.stderr
    assert "this part is done" in first.stdout
    early = recipe.grid("--summary")
    assert early.code == 1
    assert "8 of 12 trainings are not done" in early.stderr
    folder = recipe.path / "exp/grid_tiny"
    done = {p: p.stat().st_mtime_ns for p in folder.rglob("cell.json")}
    assert len(done) == 4
    rest = recipe.grid("--nj", "2")
    assert rest.code == 0, rest.stdout + rest.stderr
    assert "4 of 12 done" in rest.stdout
    assert all(p.stat().st_mtime_ns == time for p, time in done.items())
    assert not list(folder.rglob("*.pth"))
    logs = [json.loads(p.read_text()) for p in folder.rglob("decode.json")]
    assert len(logs) == 12
    assert not any("rtf" in log for log in logs)  # other trainings ran at the same time
    record = json.loads((folder / "grid.json").read_text())
    parse(Grid, record, "grid.json")
    assert [s["system"] for s in record["systems"]] == ["hrf_sites-ffn", "hrf_sites-all"]
    assert (record["folds"], record["decisions"]) == (3, 47)
    small, large = record["systems"]
    assert small["parameters"] == large["parameters"] < small["training_parameters"]
    assert small["training_parameters"] < large["training_parameters"]
    assert max(s["max_difference"] for s in record["systems"]) < 1e-5
    assert sum(map(sum, small["confusion"])) == 47 * 2
    assert "| hrf_sites-all" in rest.stdout
    again = recipe.grid()
    assert "12 of 12 done" in again.stdout


def test_features_of_a_self_supervised_model_go_through_all_stages(recipe, tmp_path):
    content = {
        "include": ["train_tiny_s.yaml", "../../../conf/base/ssl.yaml"],
        "frontend_conf": {"folder": "models/small", "layer": 2},
        "encoder_conf": {"hop_ms": 20},
        "max_epoch": 6,
    }
    path = recipe.path / "conf/train_ssl_s.yaml"
    path.write_text(yaml.safe_dump(content))
    words = ["--package", recipe.package, "--nj", "1", "--config", path]
    missing = recipe.verb("features", path)
    assert missing.code == 1
    assert missing.stderr.splitlines()[-1].endswith(
        "frontend_conf: no folder models/small; give the folder of a downloaded model"
    )
    assert "Traceback" not in missing.stderr
    make_ssl(recipe.path / "models/small")
    for verb, *more in (
        ("features", "--nj", "1"),
        ("tokens",),
        ("train", "--threads", "1"),
        ("deploy",),
        ("decode", "--sets", "test", "--nj", "1"),
        ("score", "--sets", "test"),
        ("report",),
    ):
        done = recipe.verb(verb, path, *more)
        assert done.code == 0, done.stdout[-3000:] + done.stderr
    result = parsed_json(recipe.path / "exp/ssl_s/result.json")
    assert result["config"]["frontend"] == "ssl"
    # Half as many frames as log-mel has, each of the model's width.
    stock = yaml.safe_load((recipe.path / "exp/ssl_s/deploy/merged/config.yaml").read_text())
    assert (stock["input_size"], stock["frontend"]) == (WIDTH, None)
    frames = {
        kind: sum(map(int, read_table(recipe.path / f"dump/{kind}/test/utt2num_frames").values()))
        for kind in ("fbank26_d2", "ssl_small_l2")
    }
    assert 1.9 < frames["fbank26_d2"] / frames["ssl_small_l2"] < 2.2
    other = json.loads((recipe.path / "exp/tiny_s/result.json").read_text())
    seconds = [r["decoding"][0]["audio_seconds"] for r in (result, other)]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1)
    again = recipe.call(recipe.path / "run.sh", *words)
    stages = re.split(r"^== stage \d: [A-Z].*$", again.stdout, flags=re.MULTILINE)[1:]
    assert all("up to date" in stage for stage in stages), again.stdout
    card = (recipe.path / "exp/ssl_s/deploy/merged/README.md").read_text()
    assert "layer 2 of `small`, frozen, in `features/`" in card
    # Its loss is noticed, and made good.
    weights = recipe.path / "exp/ssl_s/deploy/merged/features/model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    done = recipe.verb("deploy", path, "--variant", "merged")
    assert done.code == 0 and "up to date" not in done.stdout, done.stderr
    assert weights.read_bytes() == kept
    shutil.rmtree(recipe.path / "models")  # the deployed folder has what it needs of it
    leaves_the_recipe(recipe, "ssl_s", tmp_path)


def test_a_failed_training_is_told_and_the_others_are_kept(recipe):
    assert recipe.grid("--nj", "2").code == 0  # done already, unless this test runs alone
    table = recipe.path / "data/voice-pirate/train/label"
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b" joy", b" jov", 1))
    try:
        broken = recipe.grid("--nj", "1")
    finally:
        table.write_bytes(whole)
    assert broken.code == 1
    said = broken.stderr.splitlines()
    assert "4 of 4 trainings failed" in said[-1], broken.stderr[-2000:]
    assert "Traceback" not in broken.stderr
    assert "12 of 12 done" in recipe.grid("--dry_run").stdout
    assert os.path.exists(recipe.path / "exp/grid_tiny/grid.json")


def test_a_classifier_leaves_the_recipe_and_becomes_graphs(recipe, tmp_path):
    leaves_the_recipe(recipe, "tiny_s", tmp_path)


def leaves_the_recipe(recipe, tag: str, tmp_path: Path) -> None:
    """A folder elsewhere and graphs name the classes that stage 6 named."""
    named = read_table(recipe.path / f"exp/{tag}/decode/merged/classify/test/text")
    audio = read_table(recipe.path / "data/test/wav.scp")
    files = [recipe.path / audio[utterance] for utterance in named]
    moved = shutil.copytree(recipe.path / f"exp/{tag}/deploy/merged", tmp_path / "moved")
    done = recipe.verb("transcribe", moved, "--json", *files)
    assert done.code == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["text"] for one in found] == list(named.values())
    assert all(1 / 7 < one["segments"][0]["confidence"] <= 1 for one in found)
    done = recipe.verb("export", f"conf/train_{tag}.yaml", "--out", tmp_path / "default")
    assert "15 of 15 texts are torch's" in done.stdout, done.stderr  # waves of dev, not arks
    words = ["--out", tmp_path / "onnx", "--verify", *files]
    done = recipe.verb("export", tmp_path / "moved", *words)
    assert done.code == 0, done.stderr
    assert f"{len(files)} of {len(files)} texts are torch's" in done.stdout
    done = recipe.verb("transcribe", tmp_path / "onnx", "--json", *files)
    again = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["text"] for one in again] == list(named.values())
    spoken = recipe.call(sys.executable, tmp_path / "onnx/example.py", files[0])
    assert spoken.stdout.strip() == again[0]["text"], spoken.stderr
    for one, other in zip(again, found, strict=True):
        confidence = other["segments"][0]["confidence"]
        assert one["segments"][0]["confidence"] == pytest.approx(confidence, abs=1e-3)
