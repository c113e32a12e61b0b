"""CoVoST 2 whole, and MSLT with the model that it trained, on miniatures, as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import yaml

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.results.grids import Grid
from espnet_ext.results.schema import Result
from espnet_ext.validation import parse
from tests.fixtures import forked, translation

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
GRID = {
    "seeds": [1, 2],
    "systems": {
        "share": {"config": "train_share_xs.yaml"},
        "residual": {"config": "train_residual_xs.yaml", "after": "share", "than": ["share"]},
    },
}
CONFIGS = {"plain_xs": PLAIN, "share_xs": SHARE, "residual_xs": RESIDUAL}


SETS = {"covost2/st1": "test", "mslt/st1": "dev test dev_test"}


class Recipes:
    """Both recipes in one tree, and their stages: verbs in forks of this process."""

    def __init__(self, folder: Path):
        self.root = folder / "tree"
        for name in ("egs/conf", *(f"egs/{name}/local" for name in SETS)):
            shutil.copytree(ROOT / name, self.root / name)
        for name in SETS:
            (self.path(name) / "conf").mkdir()
        for tag, config in CONFIGS.items():
            name = f"conf/train_{tag}.yaml"
            (self.path("covost2/st1") / name).write_text(yaml.safe_dump(config, sort_keys=False))
            include = {"include": f"../../../covost2/st1/{name}"}
            (self.path("mslt/st1") / name).write_text(yaml.safe_dump(include))
        self.corpora = {
            "covost2/st1": translation.covost(folder / "cv"),
            "mslt/st1": translation.mslt(folder / "MSLT_Corpus"),
        }
        self.logs = folder / "logs"

    def path(self, name: str) -> Path:
        return self.root / "egs" / name

    def verb(self, name: str, *words: str) -> forked.Outcome:
        return forked.Command(self.path(name), words, self.logs).wait()

    def script(self, name: str, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.path(name),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def stages(self, name: str, tag: str) -> list[str]:
        """Do what run.sh does; return what each stage printed."""
        config, sets = f"conf/train_{tag}.yaml", SETS[name]
        fetch = ("local/model.py", config, "--trained", "../../covost2/st1", "--part")
        mslt = name == "mslt/st1"
        corpus = ("--corpus", str(self.corpora[name]), "--nj", "1")
        ended = [self.script(name, "local/data.py", *corpus)]
        ended.append(self.verb(name, "features", config))
        if mslt:
            ended += [self.script(name, *fetch, part) for part in ("tokens", "model")]
        else:
            ended.append(self.verb(name, "tokens", config))
            ended.append(self.verb(name, "train", config, "--threads", "1"))
        ended.append(self.verb(name, "deploy", config))
        ended.append(self.verb(name, "decode", config, "--sets", sets, "--nj", "1"))
        ended.append(self.verb(name, "score", config, "--sets", sets))
        ended.append(self.verb(name, "report", config))
        for number, stage in enumerate(ended, 1):
            code = stage.code if isinstance(stage, forked.Outcome) else stage.returncode
            assert code == 0, f"stage {number}: {stage.stdout[-2000:]}{stage.stderr[-2000:]}"
        return [stage.stdout for stage in ended]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Plain, sharing-only and residual model, trained, decoded, scored and reported."""
    made = Recipes(tmp_path_factory.mktemp("translation"))
    forked.load()
    made.printed = {tag: made.stages("covost2/st1", tag) for tag in CONFIGS}
    return made


def result_of(recipes, name, tag):
    found = json.loads((recipes.path(name) / f"exp/{tag}/result.json").read_text())
    parse(Result, found, "result.json")
    return found


def test_all_stages_run_and_the_score_is_that_of_the_texts(recipes):
    folder = recipes.path("covost2/st1")
    result = result_of(recipes, "covost2/st1", "residual_xs")
    (score,) = result["scores"]
    meant = read_table(folder / "data/test/text.zh-CN")
    said = read_table(folder / "exp/residual_xs/decode/shared/transducer_greedy/test/text")
    assert list(meant) == list(said)
    texts = list(said.values()), [list(meant.values())]
    expected = sacrebleu.corpus_chrf(*texts).score
    assert score["metrics"]["chrf"]["value"] == pytest.approx(expected, abs=1e-9)
    assert score["metrics"]["bleu"]["value"] == pytest.approx(
        sacrebleu.corpus_bleu(*texts, tokenize="zh").score, abs=1e-9
    )
    assert "tok:zh" in score["signatures"]["bleu"]
    assert {found["baseline"] for found in score["comparisons"]} == {"plain_xs"}
    assert "BLEU (95 % CI)" in recipes.printed["residual_xs"][-1]
    sizes = [result_of(recipes, "covost2/st1", t)["parameters"]["total"] for t in CONFIGS]
    assert sizes[1] < sizes[2] < sizes[0]


def test_tokens_are_those_of_the_target(recipes):
    tokens = recipes.path("covost2/st1") / "data/token_list/char.zh-CN/tokens.txt"
    found = set(tokens.read_text(encoding="utf-8").split())
    assert "鱼" in found
    assert not found & set("fishtwce")


def test_a_second_run_says_up_to_date(recipes):
    for n, printed in enumerate(recipes.stages("covost2/st1", "plain_xs"), 1):
        # Stage 2 has nothing to do where the frontend computes the features.
        assert "up to date" in printed or n == 2, printed


def test_mslt_decodes_what_covost_trained(recipes):
    recipes.stages("mslt/st1", "share_xs")
    here = result_of(recipes, "mslt/st1", "share_xs")
    there = result_of(recipes, "covost2/st1", "share_xs")
    assert (here["dataset"], here["task"]) == ("mslt", "st1")
    counts = {score["set"]: score["utterances"] for score in here["scores"]}
    assert counts == {"dev": 3, "test": 3, "dev_test": 6}
    for key in ("command", "commit", "parameters", "bytes", "training"):
        assert here[key] == there[key]
    model = "exp/share_xs/deploy/shared/model.pth"
    paths = [recipes.path(name) / model for name in SETS]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    for n, printed in enumerate(recipes.stages("mslt/st1", "share_xs"), 1):
        assert "up to date" in printed or n == 2, printed


def test_a_grid_trains_in_its_order_and_scores_the_texts(recipes):
    folder = recipes.path("covost2/st1")
    (folder / "conf/grid_tiny.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    done = recipes.verb("covost2/st1", "grid", "conf/grid_tiny.yaml", "--nj", "2")
    assert done.code == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((folder / "exp/grid_tiny/grid.json").read_text())
    parse(Grid, record, "grid.json")
    meant = list(read_table(folder / "data/test/text.zh-CN").values())
    for row in record["systems"]:
        for seed in (1, 2):
            cell = folder / f"exp/grid_tiny/{row['system']}/fixed_s{seed}"
            said = read_table(cell / "decode/shared/transducer_greedy/test/text").values()
            expected = sacrebleu.corpus_bleu(list(said), [meant], tokenize="zh").score
            assert row["scores"]["bleu"]["by_seed"][str(seed)] == pytest.approx(expected, abs=1e-9)
            expected = sacrebleu.corpus_chrf(list(said), [meant]).score
            assert row["scores"]["chrf"]["by_seed"][str(seed)] == pytest.approx(expected, abs=1e-9)
            # Only what another training starts from is kept.
            assert any(cell.rglob("*.pth")) == (row["system"] == "share")
    assert "tok:zh" in record["signatures"]["bleu"]
    start = "exp/grid_tiny/share/fixed_s2/valid.loss.ave.pth"
    trained = yaml.safe_load((folder / "exp/grid_tiny/residual/fixed_s2/config.yaml").read_text())
    assert trained["init_param"] == [start]
    (bleu, _) = record["systems"][1]["comparisons"]
    assert (bleu["metric"], bleu["baseline"]) == ("bleu", "share")
    assert list(bleu["by_seed"]) == ["1", "2"]
    again = recipes.verb("covost2/st1", "grid", "conf/grid_tiny.yaml", "--dry_run")
    assert "4 of 4 done" in again.stdout
    (folder / start).unlink()  # what started from it is not done any more, nor a fault
    again = recipes.verb("covost2/st1", "grid", "conf/grid_tiny.yaml", "--dry_run")
    assert "3 of 4 done" in again.stdout


def test_mslt_refuses_what_it_cannot_decode(recipes):
    def refused(*words: str, tag: str = "residual_xs", trained: str = "../../covost2/st1") -> str:
        config = f"conf/train_{tag}.yaml"
        words = ("local/model.py", config, "--trained", trained, "--part", "model", *words)
        failed = recipes.script("mslt/st1", *words)
        assert failed.returncode == 1
        (line,) = failed.stderr.splitlines()
        return line

    assert "nothing is trained here: give --max_epoch to ../../covost2" in refused(
        "--", "--max_epoch"
    )
    assert "no experiment in it" in refused(trained="..")
    assert "run stages 1 to 5" in refused("--variant", "merged")
    config = recipes.path("mslt/st1") / "conf/train_residual_xs.yaml"
    whole = config.read_text()
    config.write_text(whole + "optim_conf: {lr: 0.5}\n")
    assert "was trained with other settings (optim_conf)" in refused()
    config.write_text(whole)
    (config.parent / "train_none_xs.yaml").write_text(whole)
    assert "no trained 'none_xs'" in refused(tag="none_xs")
    assert not (recipes.path("mslt/st1") / "exp/none_xs").exists()


def test_a_target_that_the_data_lack_is_named(recipes):
    path = recipes.path("covost2/st1") / "conf/train_other_xs.yaml"
    path.write_text(yaml.safe_dump({"include": "train_plain_xs.yaml", "recipe": {"target": "zh"}}))
    for verb in ("tokens", "train"):
        if verb == "train":  # its tokens are there, but its texts are not
            tokens = path.parents[1] / "data/token_list"
            shutil.copytree(tokens / "char.zh-CN", tokens / "char.zh")
        failed = recipes.verb("covost2/st1", verb, "conf/train_other_xs.yaml")
        assert failed.code == 1
        assert "no data/train/text.zh: recipe: target: 'zh'" in failed.stderr
        assert "did you mean 'zh-CN'?" in failed.stderr
        assert not (path.parents[1] / "exp/other_xs").exists()
