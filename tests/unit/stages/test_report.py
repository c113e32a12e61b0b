"""The verb `report` on miniature runs: what it prints, publishes and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ext.cli import report as verb
from espnet_ext.errors import UserError
from tests.fixtures.a_run import edit, enter_run, make_run, run_verb

OTHER_BEAM = "encoder: x\nrecipe: {decode: {ctc_att_beam: {beam_size: 3}}}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return enter_run(tmp_path, monkeypatch)


def test_report_prints_the_run_writes_plots_and_is_then_up_to_date(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml")
    out = capsys.readouterr().out
    assert re.search(r"^\| hrf_xs +\| ctc_greedy", out, re.MULTILINE)
    assert re.search(r"^\| baseline base_xs +\| ctc_greedy", out, re.MULTILINE)
    assert "WER inconclusive against base_xs" in out
    assert "): the interval by speaker holds 0" in " ".join(out.split())
    assert out.splitlines()[-1].startswith("| baseline base_xs ")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 100 and table[0].count("|") - 1 <= 6
    for name in ("training_curves.png", "wer_bytes.png"):
        assert Path("exp/hrf_xs/images", name).read_bytes().startswith(b"\x89PNG")
    assert not Path("../../../RESULTS.md").exists() and not Path("../../../results").exists()
    before = Path("exp/hrf_xs/result.json").stat().st_mtime_ns
    run_verb("conf/train_hrf_xs.yaml")
    out = capsys.readouterr().out
    assert "up to date" in out and "| hrf_xs " in out
    assert Path("exp/hrf_xs/result.json").stat().st_mtime_ns == before


def test_report_without_a_training_log_says_so(recipe, capsys):
    Path("exp/hrf_xs/train.log").unlink()
    run_verb("conf/train_hrf_xs.yaml")
    assert "no training curves drawn" in capsys.readouterr().out
    assert Path("exp/hrf_xs/result.json").exists()


def test_publish_then_all_gives_the_same_page(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    make_run(recipe, "second_xs", sets=("test",))
    run_verb("conf/train_second_xs.yaml", "--publish")
    root = recipe.parents[2]
    page, recipe_page = root / "RESULTS.md", root / "results/toy_asr1/README.md"
    text, recipe_text = page.read_text(), recipe_page.read_text()
    assert sorted(p.name for p in (root / "results/toy_asr1").iterdir()) == [
        "README.md",
        "hrf_xs.json",
        "second_xs.json",
        "wer_bytes.svg",
    ]
    plot = (root / "results/toy_asr1/wer_bytes.svg").read_bytes()
    page.unlink()
    recipe_page.unlink()
    run_verb("--all")
    assert (page.read_text(), recipe_page.read_text()) == (text, recipe_text)
    assert (root / "results/toy_asr1/wer_bytes.svg").read_bytes() == plot
    capsys.readouterr()
    run_verb("--all")
    assert "up to date" in capsys.readouterr().out and page.read_text() == text


@pytest.mark.parametrize("commit", ["abc1234+dirty", "unknown", "abc1234; unknown"])
def test_a_run_that_no_commit_describes_is_published_only_when_told(recipe, commit):
    edit("exp/hrf_xs/train.json", lambda t: t.update(commit=commit))
    run_verb("conf/train_hrf_xs.yaml")
    with pytest.raises(UserError, match=f"the commit {re.escape(commit)}.*--allow-dirty"):
        run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    assert not (root / "results").exists() and not (root / "RESULTS.md").exists()
    run_verb("conf/train_hrf_xs.yaml", "--publish", "--allow-dirty")
    assert f"- commit: {commit}\n" in (root / "results/toy_asr1/README.md").read_text()


def test_a_run_of_folds_has_the_names_of_its_sets(recipe):
    make_run(recipe, "folds_xs", sets=("voice-a/test", "voice-b/test"))
    run_verb("conf/train_folds_xs.yaml")
    result = json.loads(Path("exp/folds_xs/result.json").read_text())
    names = ["voice-a/test", "voice-b/test"]
    assert [score["set"] for score in result["scores"]] == names
    assert [decoding["set"] for decoding in result["decoding"]] == names


def test_the_baseline_that_the_scores_compare_with_is_printed(recipe, capsys):
    make_run(recipe, "base_xs")
    run_verb("conf/train_base_xs.yaml", "--publish", "--allow-dirty")
    # The baseline is trained again, and is larger.
    edit("exp/base_xs/deploy/merged/deploy.json", lambda d: d.update(bytes=12340000))
    run_verb("conf/train_base_xs.yaml")
    capsys.readouterr()
    run_verb("conf/train_hrf_xs.yaml")
    (first, *_) = re.findall(r"^\| baseline base_xs .*$", capsys.readouterr().out, re.MULTILINE)
    assert "| 12.34 |" in first


def test_only_the_run_and_its_baseline_are_printed(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    make_run(recipe, "base_xs")
    run_verb("conf/train_base_xs.yaml", "--publish")
    make_run(recipe, "second_xs")
    capsys.readouterr()
    run_verb("conf/train_second_xs.yaml")
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in x.split("|")[1:-1]] for x in out.splitlines() if x[:1] == "|"]
    assert {row[0] for row in rows[2:]} == {"second_xs", "baseline base_xs"}
    assert rows[3][3] == "6.10"  # from the baseline's own result
    image = Path("exp/second_xs/images/wer_bytes.png")
    assert f"wrote {image}" in out


def test_the_plot_has_the_run_its_baselines_and_what_is_best_for_its_size(recipe, monkeypatch):
    run_verb("conf/train_hrf_xs.yaml", "--publish")  # an older publication of the run below
    for tag, wer in (("base_xs", 0.43), ("good_xs", 0.1), ("bad_xs", 0.9)):
        make_run(recipe, tag)
        run_verb(f"conf/train_{tag}.yaml", "--publish")
        published = Path("../../../results/toy_asr1", f"{tag}.json")
        edit(published, lambda d, w=wer: d["scores"][0]["metrics"]["wer"].update(value=w))
    drawn = []
    monkeypatch.setattr(
        "espnet_ext.stages.report.plot_sizes", lambda series, _: drawn.append(series)
    )
    run_verb("conf/train_hrf_xs.yaml")
    (series,) = ({name: [label for label, _ in runs] for name, runs in s.items()} for s in drawn)
    assert series == {
        "this run": ["hrf_xs"],
        "compared with": ["base_xs"],
        "published": ["good_xs"],
    }


def test_another_variant_has_files_of_its_own(recipe):
    make_run(recipe, "hrf_xs", variant="shared")
    run_verb("conf/train_hrf_xs.yaml", "--variant", "shared", "--publish")
    assert Path("exp/hrf_xs/result_shared.json").is_file()
    assert (recipe.parents[2] / "results/toy_asr1/hrf_xs_shared.json").is_file()


def test_tag_names_the_experiment(recipe):
    make_run(recipe, "again", of="hrf_xs")
    run_verb("conf/train_hrf_xs.yaml", "--tag", "again")
    assert json.loads(Path("exp/again/result.json").read_text())["tag"] == "again"


EXP = "exp/hrf_xs"
TEST = "merged/ctc_greedy/test"


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        (f"{EXP}/valid.loss.ave_2best.pth", "more epochs", "run stages 5 to 7"),
        (f"{EXP}/deploy/merged/model.pth", "another", "another model; run stages 6 and 7"),
        (f"{EXP}/decode/{TEST}/text", "a-1 x", "before exp/hrf_xs/decode/.* run stage 7"),
        ("data/unseen/text", "a-1 x", "before data/unseen/text changed; run stage 7"),
        (f"{EXP}/deploy/merged/model.pth", None, "model.pth; run stage 5"),
        (f"{EXP}/decode/{TEST}/text", None, "run stages 6 and 7 with --sets test"),
        ("conf/train_hrf_xs.yaml", OTHER_BEAM, "other options; run stages 6 and 7"),
    ],
)
@pytest.mark.parametrize("reported", [False, True])
def test_files_of_different_runs_are_not_joined(recipe, path, content, says, reported):
    if reported:
        run_verb("conf/train_hrf_xs.yaml")
    if content is None:
        Path(path).unlink()
    elif content == OTHER_BEAM:
        for stage in ("decode", "score"):
            Path(EXP, stage, "merged/ctc_greedy").rename(Path(EXP, stage, "merged/ctc_att_beam"))
        Path(path).write_text(content)
    else:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=says) as error:
        run_verb("conf/train_hrf_xs.yaml")
    assert "\n" not in str(error.value)
    assert Path(EXP, "result.json").exists() == reported


def test_a_score_of_a_model_before_this_one_is_not_told_as_this_ones(recipe):
    log = Path(EXP, "decode", TEST, "decode.json")
    edit(log, lambda d: d.update(model="0" * 64))
    with pytest.raises(UserError, match=r"or remove exp/hrf_xs/score/merged/ctc_greedy/test\.json"):
        run_verb("conf/train_hrf_xs.yaml")
    Path(EXP, "score", f"{TEST}.json").unlink()
    run_verb("conf/train_hrf_xs.yaml")
    result = json.loads(Path(EXP, "result.json").read_text())
    assert [score["set"] for score in result["scores"]] == ["unseen"]


def test_results_option_names_the_folder(recipe, tmp_path):
    run_verb("conf/train_hrf_xs.yaml", "--publish", "--results", str(tmp_path / "else/where"))
    assert (tmp_path / "else/where/toy_asr1/hrf_xs.json").is_file()
    assert "[toy_asr1]: where/toy_asr1" in (tmp_path / "else/RESULTS.md").read_text()
    assert not (recipe.parents[2] / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give a CONFIG"),
        (["--all", "conf/train_hrf_xs.yaml"], "--all takes no CONFIG"),
        (["--all", "--publish"], "--all takes no CONFIG"),
        (["--all", "--tag", "x"], "--all takes no CONFIG"),
        (["--all", "--results", "none"], "no results in none"),
        (["conf/none.yaml"], "no config"),
        (["conf/train_hrf_xs.yaml", "--variant", "shared"], "run stage 5"),
    ],
)
def test_verb_tells_what_to_do(recipe, arguments, part):
    with pytest.raises(UserError) as error:
        run_verb(*arguments)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_outside_a_repository_publishes_only_where_told(tmp_path, monkeypatch):
    make_run(tmp_path / "toy" / "asr1", "hrf_xs")
    monkeypatch.chdir(tmp_path / "toy" / "asr1")
    with pytest.raises(UserError, match="give --results"):
        run_verb("conf/train_hrf_xs.yaml", "--publish")
    run_verb("conf/train_hrf_xs.yaml", "--publish", "--results", str(tmp_path / "results"))
    assert (tmp_path / "RESULTS.md").is_file()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not valid JSON"),
        ("{}", "missing key schema_version"),
        (None, "holds the result of"),
    ],
)
def test_bad_committed_result_is_named_and_the_page_kept(recipe, content, part):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    page = (root / "RESULTS.md").read_text()
    good = (root / "results/toy_asr1/hrf_xs.json").read_text()
    (root / "results/toy_asr1/renamed.json").write_text(good if content is None else content)
    with pytest.raises(UserError) as error:
        run_verb("--all")
    assert "renamed.json" in str(error.value) and part in str(error.value)
    assert (root / "RESULTS.md").read_text() == page


def test_reporting_imports_neither_torch_nor_espnet(recipe):
    code = (
        "import sys; sys.argv = ['espnet-ext', 'report', 'conf/train_hrf_xs.yaml']\n"
        "from espnet_ext.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "heavy = {'torch', 'espnet2', 'espnet', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(verb.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(Path("exp/hrf_xs/result.json").read_text())["tag"] == "hrf_xs"
