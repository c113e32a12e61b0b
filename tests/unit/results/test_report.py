"""The verb `report`, RESULTS.md and the pages in results/, on miniature runs."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ext.cli import report as verb
from espnet_ext.errors import UserError
from espnet_ext.results.benchmarks import median_range
from espnet_ext.results.claims.papers import read_papers
from espnet_ext.results.pages.index import README_MARKERS, anchor, pages, readme_with_results
from espnet_ext.results.schema import Result, as_json
from espnet_ext.results.store import read_results
from espnet_ext.validation import parse
from tests.fixtures.a_run import edit, make_run, run_verb

OTHER_BEAM = "encoder: x\nrecipe: {decode: {ctc_att_beam: {beam_size: 3}}}\n"
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "whole_job.py"


def test_report_prints_the_run_writes_plots_and_is_then_up_to_date(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml")
    out = capsys.readouterr().out
    assert re.search(r"^\| hrf_xs +\| ctc_greedy", out, re.MULTILINE)
    assert re.search(r"^\| baseline base_xs +\| ctc_greedy", out, re.MULTILINE)
    assert "WER inconclusive against base_xs" in out
    assert out.splitlines()[-2].endswith("): the interval by speaker holds 0")
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


def test_readme_gets_the_table_between_its_markers_and_nothing_else(recipe):
    readme = recipe.parents[2] / "README.md"
    begin, end = README_MARKERS
    readme.write_text(f"before\n{begin}\nold table\n{end}\nafter\n")
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n") and text.endswith(f"\n{end}\nafter\n")
    assert "old table" not in text and "| hrf_xs " in text
    readme.write_text("no markers\n")
    run_verb("--all")
    assert readme.read_text() == "no markers\n"


def test_the_readme_shows_the_headlines_that_a_file_names(recipe):
    root = recipe.parents[2]
    begin, end = README_MARKERS
    (root / "README.md").write_text(f"{begin}\n{end}\n")
    run = {"run": "toy_asr1/hrf_xs", "than": "base_xs", "set": "test"}
    content = {"headlines": [{"title": "HRF on toys", "evidence": run}]}
    path = root / "results/headlines.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    (row,) = [x for x in (root / "README.md").read_text().splitlines() if "HRF on toys" in x]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "HRF on toys",
        "6.10 MB",
        "WER 40.0 (38.0-42.0)",
        "-3.0, better",
    ]
    run["run"] = "toy_asr1/other"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="HRF on toys: no result toy_asr1/other"):
        run_verb("--all")


def test_the_whole_job_is_told_where_it_was_measured(recipe):
    path = "results/benchmarks/whole_job.json"
    command = [sys.executable, str(BENCHMARK), "--json", path, "--", "true"]
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    assert "The main job whole" not in (root / "RESULTS.md").read_text()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    run_verb("--all")
    made = json.loads((root / path).read_text())
    text = (root / "results/benchmarks/README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `true`")]
    assert f" {made['measured']['disk_mb']:,} " in row
    assert f"commit {made['commit']}" in text
    index = (root / "RESULTS.md").read_text()
    assert "- [The main job whole](results/benchmarks/README.md#the-main-job-whole)" in index
    failed = subprocess.run([*command[:-1], "false"], cwd=root, capture_output=True)
    assert failed.returncode == 1
    assert json.loads((root / path).read_text()) == made


STEP = {
    "size": "xs",
    "encoder_conf": {"num_blocks": 6},
    "batch": {"utterances": 48, "seconds_each": 2.5},
    "dtype": "float32",
    "device": "some CPU",
    "threads": 2,
    "results": [
        {
            "form": "plain",
            "ratio": None,
            "parameters": 1620000,
            "milliseconds": [500.0, 520.0, 900.0],
            "to_plain": [1.0, 1.0, 1.0],
        },
        {
            "form": "product",
            "ratio": 4.0,
            "parameters": 3980000,
            "milliseconds": [600.0, 610.0, 990.0],
            "to_plain": [1.2, 1.17, 1.1],
        },
    ],
}
LATENCY = {
    "seconds": 3.0,
    "calls": 5,
    "threads": 1,
    "results": [
        {
            "model": "hrf_a_s",
            "parameters": 12345,
            "times": {"plain": [0.004, 0.006, 0.005], "merged": [0.004, 0.006, 0.006]},
            "to_plain": {
                "plain again": {"ratio": 0.998, "interval": [0.99, 1.006]},
                "merged": {"ratio": 1.0621, "interval": [0.95, 1.2]},
            },
        }
    ],
}
NESTED = {
    **{key: STEP[key] for key in ("size", "batch", "dtype", "device", "threads")},
    "encoder_conf": {"num_blocks": 6},
    "family": {"depths": [6, 3], "widths": [], "bits": [32, 4]},
    "results": [
        {
            "form": "all",
            "members": 4,
            "of": 4,
            "milliseconds": [500.0, 520.0, 700.0],
            "to_largest": [2.1, 2.0, 2.6],
            "held_mb": 94.44,
            "peak_mb": "not measured",
        }
    ],
}
FORMS = {
    "threads": 1,
    "results": [
        {
            "config": "train_residual_k3",
            "form": "shared",
            "file_mb": 12.345,
            "load_s": 0.5,
            "offline_10s_ms": 740.04,
            "chunk_ms_p50": 9.87,
            "chunk_ms_p95": 12.0,
            "peak_rss_mb": 1515.2,
            "rss_before_model_mb": 500,
        }
    ],
}
DECODING = {
    "espnet": [3.0, 2.0, 2.5],
    "ours": [1.0, 1.25, 2.0],
    "ratio": 2.0,
    "audio_seconds": 160.4,
    "utterances": 64,
    "tokens_per_second": 2.1,
    "batch": 16,
    "threads": 1,
    "search": {"espnet": [0.9], "ours": [0.3]},
}
PRODUCT = ["product", "4", "3.98 M", "610 (600-990)", "1.17 (1.10-1.20)"]
A_FORM = ["residual_k3", "shared", "12.35", "0.50", "740.0", "9.9", "12.0", "1,515", "500"]
SPREAD = ["2.50 (2.00-3.00)", "1.25 (1.00-2.00)"]


@pytest.mark.parametrize(
    ("program", "measured", "row"),
    [
        ("hrf_training_step", STEP, PRODUCT),
        (
            "merged_latency",
            LATENCY,
            ["hrf_a_s", "12,345", "5.00", "0.998 (0.990-1.006)", "1.062 (0.950-1.200)"],
        ),
        ("nested_step", NESTED, ["all", "4 of 4", "520 (500-700)", "2.10 (2.00-2.60)", "94.4"]),
        ("residual_forms", FORMS, A_FORM),
        ("transducer_decoding", DECODING, ["64 (160 s)", "16", *SPREAD, "2.00", "3.00"]),
    ],
)
def test_a_benchmark_writes_its_table_with_its_command(
    recipe, monkeypatch, capsys, program, measured, row
):
    root = recipe.parents[2]
    path = root / f"results/benchmarks/{program}.one.json"
    script = runpy.run_path(str(BENCHMARK.with_name(f"{program}.py")))
    monkeypatch.setattr(sys, "argv", [f"/somewhere/benchmarks/{program}.py", "a.yaml", "--b", "4"])
    script["finish"](script["table"](measured), measured, str(path))
    assert f"| {row[0]} " in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert made["rows"][-1] == row and made["measured"] == measured
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    lines = (root / "results/benchmarks/README.md").read_text().splitlines()
    assert f"## {made['title']}: one" in lines
    assert f"python benchmarks/{program}.py a.yaml --b 4" in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert row in cells


def test_an_anchor_is_the_one_that_github_makes():
    found = anchor("Time of stacks, whole and mimicked: whisper_tiny.en")
    assert found == "time-of-stacks-whole-and-mimicked-whisper_tinyen"


def test_a_range_is_of_all_rounds():
    assert median_range([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"


def test_a_benchmarks_file_that_does_not_fit_is_named_and_the_page_kept(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    page = (root / "RESULTS.md").read_text()
    path = root / "results/benchmarks/nested_step.a.json"
    path.parent.mkdir()
    for content, part in (("{", "not valid JSON"), ('{"wall": 1}', "unknown key 'wall'")):
        path.write_text(content)
        with pytest.raises(UserError, match=f"{path.name}: {part}"):
            run_verb("--all")
    assert (root / "RESULTS.md").read_text() == page


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


def test_the_index_names_its_command_and_the_recipes_page_tells_each_run(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    index = (root / "RESULTS.md").read_text()
    assert "Generated by `espnet-ext report --all`" in index
    assert "[toy_asr1]: results/toy_asr1" in index
    assert "(results/toy_asr1/wer_bytes.svg)" in index
    text = (root / "results/toy_asr1/README.md").read_text()
    for part in (
        "# Results of toy_asr1",
        "### hrf_xs",
        "- command: `espnet-ext train conf/train_hrf_xs.yaml`",
        "- commit: abc1234",
        "- seed: 7",
        "- checkpoint: valid.loss.ave_2best.pth, epochs 1, 2\n",
        "torch 2.14.1",
        "| 0.0812 (0.08-0.09) ",
        "cores 2",
        "[hrf_xs.json](hrf_xs.json)",
        "(wer_bytes.svg)",
        "hrf_xs, test, ctc_greedy: WER better than base_xs (-3.0 points",
        "CER worse than base_xs (+2.0 points",
    ):
        assert part in text, part


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


def test_this_repositorys_pages_are_those_of_its_results(monkeypatch):
    root = Path(verb.__file__).parents[2]
    monkeypatch.chdir(root)
    results = read_results(Path("results"))
    made = pages(results, read_papers(Path("results")), Path("results"))
    for page, text in made.items():
        assert page.read_text(encoding="utf-8") == text, page
    for run in results.runs.values():
        assert parse(Result, as_json(run), run.name) == run
    readme = Path("README.md").read_text(encoding="utf-8")
    assert readme_with_results(readme, results, Path("results")) == readme
    index = made[Path("RESULTS.md")].splitlines()
    assert len(index) <= 200 and max(map(len, index)) <= 160
    begin, end = (readme.index(marker) for marker in README_MARKERS)
    assert max(map(len, readme[begin:end].splitlines())) <= 100


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
