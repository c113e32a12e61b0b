"""CoVoST 2 whole, and MSLT with the model that it trained, on miniatures, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import sacrebleu
import yaml

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.report.schema import RESULT, validate
from tests.fixtures import miniature, translated

# One process makes the recipes, whatever pytest-xdist distributes.
pytestmark = pytest.mark.xdist_group("translation_pipeline")

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    "include": "../../../conf/base/transducer.yaml",
    "frontend_conf": {"n_mels": 20},
    "token_type": "char",
    "encoder": "streaming_transformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 2,
        "conv_channels": 4,
        "dropout_rate": 0.0,
    },
    "decoder_conf": {"hidden_size": 16, "embed_size": 8},
    "joint_net_conf": {"joint_space_size": 16},
    "batch_bins": 64000,
    "max_epoch": 2,
    "optim_conf": {"lr": 0.01},
    "scheduler_conf": {"warmup_steps": 10},
    "recipe": {"task": "st", "target": "zh-CN", "average": 1},
}
SHARE = {
    "include": "train_plain_xs.yaml",
    "encoder": "residual_streaming_transformer",
    "encoder_conf": {"residual": {"share": 2, "rank": 0, "diagonal": False}},
    "recipe": {"variant": "shared", "baseline": "plain_xs"},
}
RESIDUAL = {
    "include": "train_share_xs.yaml",
    "encoder_conf": {"residual": {"rank": 2, "diagonal": True}},
    "init_param": ["exp/share_xs/valid.loss.ave.pth"],
}
CONFIGS = {"plain_xs": PLAIN, "share_xs": SHARE, "residual_xs": RESIDUAL}


class Recipes:
    """Both recipes in one tree, and how to run them."""

    def __init__(self, folder: Path):
        self.root = folder / "tree"
        recipes = ("covost2/st1", "mslt/st1")
        wanted = ["utils/recipe.sh", "tools/install.sh", "egs/conf"]
        wanted += [f"egs/{name}/{part}" for name in recipes for part in ("local", "run.sh")]
        for name in wanted:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, target)
        for name in recipes:
            (self.path(name) / "conf").mkdir()
        for tag, config in CONFIGS.items():
            name = f"conf/train_{tag}.yaml"
            (self.path("covost2/st1") / name).write_text(yaml.safe_dump(config, sort_keys=False))
            include = {"include": f"../../../covost2/st1/{name}"}
            (self.path("mslt/st1") / name).write_text(yaml.safe_dump(include))
        self.corpora = {
            "covost2/st1": translated.covost(folder / "cv"),
            "mslt/st1": translated.mslt(folder / "MSLT_Corpus"),
        }
        self.environment = miniature.environment(folder / "environment")

    def path(self, name: str) -> Path:
        return self.root / "egs" / name

    def run(self, name: str, tag: str, *options: str) -> subprocess.CompletedProcess:
        """Run a recipe on one core, where ESPnet's sums repeat."""
        words = ["--config", f"conf/train_{tag}.yaml", "--corpus", str(self.corpora[name])]
        return subprocess.run(
            [self.path(name) / "run.sh", *words, "--nj", "1", *options],
            cwd=self.root,
            env=self.environment,
            preexec_fn=lambda: os.sched_setaffinity(0, [max(os.sched_getaffinity(0))]),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Plain, sharing-only and residual model, trained, decoded, scored and reported."""
    made = Recipes(tmp_path_factory.mktemp("translation"))
    made.told = {}
    for tag in CONFIGS:
        done = made.run("covost2/st1", tag)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        made.told[tag] = done.stdout
    return made


def result_of(recipes, name, tag):
    found = json.loads((recipes.path(name) / f"exp/{tag}/result.json").read_text())
    validate(found, RESULT, "result.json")
    return found


def test_all_stages_run_and_the_score_is_that_of_the_texts(recipes):
    for told in recipes.told.values():
        assert re.findall(r"^== stage (\d): done", told, re.MULTILINE) == list("12345678")
    folder = recipes.path("covost2/st1")
    result = result_of(recipes, "covost2/st1", "residual_xs")
    (score,) = result["scores"]
    meant = read_table(folder / "data/test/text.zh-CN")
    said = read_table(folder / "exp/residual_xs/decode/shared/transducer_greedy/test/text")
    assert list(meant) == list(said)
    texts = list(said.values()), [list(meant.values())]
    expected = sacrebleu.corpus_chrf(*texts).score
    assert score["chrf"]["value"] == pytest.approx(expected, abs=1e-9)
    assert score["bleu"]["value"] == pytest.approx(
        sacrebleu.corpus_bleu(*texts, tokenize="zh").score, abs=1e-9
    )
    assert "tok:zh" in score["bleu"]["signature"]
    assert score["baseline"]["tag"] == "plain_xs"
    assert "test BLEU (95 % CI)" in recipes.told["residual_xs"]
    sizes = [result_of(recipes, "covost2/st1", t)["parameters"]["total"] for t in CONFIGS]
    assert sizes[1] < sizes[2] < sizes[0]


def test_tokens_are_those_of_the_target(recipes):
    tokens = recipes.path("covost2/st1") / "data/token_list/char.zh-CN/tokens.txt"
    found = set(tokens.read_text(encoding="utf-8").split())
    assert "鱼" in found
    assert not found & set("fishtwce")


def test_a_second_run_says_up_to_date(recipes):
    again = recipes.run("covost2/st1", "plain_xs")
    stages = re.split(r"^== stage \d: [A-Z].*$", again.stdout, flags=re.MULTILINE)[1:]
    assert len(stages) == 8
    # Stage 2 has nothing to do where the frontend computes the features.
    assert all("up to date" in s for n, s in enumerate(stages, 1) if n != 2), again.stdout


def test_mslt_decodes_what_covost_trained(recipes):
    done = recipes.run("mslt/st1", "share_xs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert re.findall(r"^== stage (\d): done", done.stdout, re.MULTILINE) == list("12345678")
    here = result_of(recipes, "mslt/st1", "share_xs")
    there = result_of(recipes, "covost2/st1", "share_xs")
    assert (here["dataset"], here["task"]) == ("mslt", "st1")
    assert {s["set"]: s["utterances"] for s in here["scores"]} == {
        "dev": 3,
        "test": 3,
        "dev_test": 6,
    }
    for key in ("command", "commit", "parameters", "bytes", "training"):
        assert here[key] == there[key]
    model = "exp/share_xs/deploy/shared/model.pth"
    paths = [recipes.path(name) / model for name in ("mslt/st1", "covost2/st1")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    again = recipes.run("mslt/st1", "share_xs")
    assert again.returncode == 0 and again.stdout.count("up to date") >= 7, again.stdout


def test_mslt_refuses_what_it_cannot_decode(recipes):
    def told(*options: str, tag: str = "residual_xs") -> str:
        failed = recipes.run("mslt/st1", tag, *options)
        assert failed.returncode, failed.stdout
        assert "Traceback" not in failed.stdout + failed.stderr
        (line,) = [x for x in failed.stdout.splitlines() if x.startswith("local/model.py: error")]
        return line

    assert "nothing is trained here" in told("--", "--max_epoch", "3")
    assert "no experiment in it" in told("--trained", str(recipes.root))
    config = recipes.path("mslt/st1") / "conf/train_residual_xs.yaml"
    whole = config.read_text()
    config.write_text(whole + "optim_conf: {lr: 0.5}\n")
    assert "was trained with other settings (optim_conf)" in told()
    config.write_text(whole)
    (config.parent / "train_none_xs.yaml").write_text(whole)
    assert "no trained 'none_xs'" in told(tag="none_xs")


def test_a_target_that_the_data_lack_is_named(recipes):
    folder = recipes.path("covost2/st1")
    path = folder / "conf/train_other_xs.yaml"
    path.write_text(yaml.safe_dump({"include": "train_plain_xs.yaml", "recipe": {"target": "zh"}}))
    for options in (("--stage", "3"), ("--stage", "4")):
        failed = recipes.run("covost2/st1", "other_xs", *options)
        assert failed.returncode
        assert "no data/train/text.zh: recipe: target: 'zh'" in failed.stdout
        assert "did you mean 'zh-CN'?" in failed.stdout
