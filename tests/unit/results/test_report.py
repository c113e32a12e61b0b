"""The verb `report` and RESULTS.md, on miniature runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ext.cli import report as verb
from espnet_ext.errors import UserError
from espnet_ext.files import write_json
from espnet_ext.results.benchmarks import read_benchmarks
from espnet_ext.results.claims import read_claims
from espnet_ext.results.grids import read_grids
from espnet_ext.results.pages.layers import read_stacks
from espnet_ext.results.pages.main import README_MARKERS, results_page
from espnet_ext.results.run import read_results
from espnet_ext.results.schema import any_score, validate
from tests.fixtures.a_run import edit, make_run, run_verb

OTHER_BEAM = "encoder: x\nrecipe: {decode: {ctc_att_beam: {beam_size: 3}}}\n"
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "whole_job.py"


def test_report_prints_the_run_writes_plots_and_is_then_up_to_date(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml")
    out = capsys.readouterr().out
    assert "| hrf_xs | ctc_greedy" in out and "not told apart from base_xs" in out
    for name in ("training_curves.png", "wer_bytes.png"):
        assert Path("exp/hrf_xs/images", name).read_bytes().startswith(b"\x89PNG")
    assert not Path("../../../RESULTS.md").exists() and not Path("../../../results").exists()
    before = Path("exp/hrf_xs/result.json").stat().st_mtime_ns
    run_verb("conf/train_hrf_xs.yaml")
    out = capsys.readouterr().out
    assert "up to date" in out and "| hrf_xs | ctc_greedy" in out
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
    page = root / "RESULTS.md"
    text = page.read_text()
    assert sorted(p.name for p in (root / "results/toy_asr1").iterdir()) == [
        "hrf_xs.json",
        "second_xs.json",
        "wer_bytes.svg",
    ]
    plot = (root / "results/toy_asr1/wer_bytes.svg").read_bytes()
    page.unlink()
    run_verb("--all")
    assert page.read_text() == text
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


def test_the_whole_job_is_told_where_it_was_measured(recipe):
    command = [sys.executable, str(BENCHMARK), "--json", "results/whole_job.json", "--", "true"]
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    assert "The main job whole" not in (root / "RESULTS.md").read_text()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    run_verb("--all")
    measured = json.loads((root / "results/whole_job.json").read_text())
    text = (root / "RESULTS.md").read_text()
    assert f"{measured['disk_mb']:,} MB of disk; commit {measured['commit']}" in text
    failed = subprocess.run([*command[:-1], "false"], cwd=root, capture_output=True)
    assert failed.returncode == 1
    assert json.loads((root / "results/whole_job.json").read_text()) == measured


STEP = {
    "size": "xs",
    "encoder_conf": {"num_blocks": 6},
    "batch": {"utterances": 48, "seconds_each": 2.5},
    "dtype": "float32",
    "device": "some CPU",
    "threads": 2,
    "torch": "2.14.1",
    "command": ["/somewhere/benchmarks/hrf_training_step.py", "--ratios", "4"],
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


def test_a_training_step_is_told_with_its_command(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    write_json(root / "results/hrf_training_step.json", STEP)
    run_verb("--all")
    text = (root / "RESULTS.md").read_text()
    assert "\npython benchmarks/hrf_training_step.py --ratios 4\n" in text
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| product ")]
    assert [cell.strip() for cell in cells[0]] == [
        "product",
        "4",
        "3.98 M",
        "610 (600-990)",
        "1.17 (1.10-1.20)",
    ]


LATENCY = {
    "seconds": 3.0,
    "calls": 5,
    "threads": 1,
    "cpu": "some CPU",
    "torch": "2.14",
    "command": ["/somewhere/benchmarks/merged_latency.py", "a.yaml"],
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


def test_latency_of_merged_models_is_told_with_its_interval(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    write_json(root / "results/merged_latency.json", LATENCY)
    run_verb("--all")
    text = (root / "RESULTS.md").read_text()
    assert "\npython benchmarks/merged_latency.py a.yaml\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| hrf_a_s")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == [
        "12,345",
        "5.00",
        "0.998 (0.990-1.006)",
        "1.062 (0.950-1.200)",
    ]


NESTED = {
    **{key: STEP[key] for key in ("size", "batch", "dtype", "device", "threads", "torch")},
    "encoder_conf": {"num_blocks": 6},
    "family": {"depths": [6, 3], "widths": [], "bits": [32, 4]},
    "command": ["/somewhere/benchmarks/nested_step.py", "--depths", "6", "3"],
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


def test_a_familys_step_is_told_with_its_command(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    write_json(root / "results/nested_step.four.json", NESTED)
    run_verb("--all")
    text = (root / "RESULTS.md").read_text()
    assert "### four\n\n```bash\npython benchmarks/nested_step.py --depths 6 3\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| all ")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == [
        "4 of 4",
        "520 (500-700)",
        "2.10 (2.00-2.60)",
        "94.4",
    ]


FORMS = {
    "cpu": "some CPU",
    "torch": "2.14.1",
    "threads": 1,
    "command": ["/somewhere/benchmarks/residual_forms.py", "a.yaml"],
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
    "cpu": "some CPU",
    "torch": "2.14.1",
    "command": ["/somewhere/benchmarks/transducer_decoding.py", "exp/a", "feats.scp"],
}


def test_streaming_benchmarks_are_told_with_their_commands(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    write_json(root / "results/residual_forms.json", FORMS)
    write_json(root / "results/transducer_decoding.k3.json", DECODING)
    run_verb("--all")
    lines = (root / "RESULTS.md").read_text().splitlines()
    assert "python benchmarks/residual_forms.py a.yaml" in lines
    assert "python benchmarks/transducer_decoding.py exp/a feats.scp" in lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert [
        "residual_k3",
        "shared",
        "12.35",
        "0.50",
        "740.0",
        "9.9",
        "12.0",
        "1,515",
        "500",
    ] in rows
    spread = ["2.50 (2.00-3.00)", "1.25 (1.00-2.00)"]
    assert ["k3", "64 (160 s)", "16", *spread, "2.00", "3.00"] in rows


@pytest.mark.parametrize(
    "name",
    [
        *("whole_job.json", "hrf_training_step.json", "merged_latency.json"),
        *("nested_step.a.json", "residual_forms.json", "transducer_decoding.a.json"),
    ],
)
def test_a_benchmarks_file_that_does_not_fit_is_named_and_the_page_kept(recipe, name):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    root = recipe.parents[2]
    page = (root / "RESULTS.md").read_text()
    for content, part in (("{", "not valid JSON"), ('{"wall": 1}', "unknown key 'wall'")):
        (root / "results" / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}: {part}"):
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
    assert f"- commit: {commit}\n" in (root / "RESULTS.md").read_text()


def test_page_begins_with_its_command_and_tells_each_run(recipe):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    text = (recipe.parents[2] / "RESULTS.md").read_text()
    assert text.startswith("```bash\nespnet-ext report --all ")
    for part in (
        "## toy_asr1",
        "### hrf_xs",
        "- command: `espnet-ext train conf/train_hrf_xs.yaml`",
        "- commit: abc1234",
        "- seed: 7",
        "- checkpoint: valid.loss.ave_2best.pth, epochs 1, 2\n",
        "torch 2.14.1",
        "| 0.0812 (0.08-0.09) ",
        "cores 2",
        "[hrf_xs.json](results/toy_asr1/hrf_xs.json)",
        "(results/toy_asr1/wer_bytes.svg)",
        "hrf_xs, test, ctc_greedy: WER better than base_xs (-3.0 points",
        "CER worse than base_xs (+2.0 points",
    ):
        assert part in text, part


def test_committed_runs_are_printed_beside(recipe, capsys):
    run_verb("conf/train_hrf_xs.yaml", "--publish")
    make_run(recipe, "second_xs")
    capsys.readouterr()
    run_verb("conf/train_second_xs.yaml")
    out = capsys.readouterr().out
    assert "| second_xs " in out and "| hrf_xs (committed) " in out


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
    assert "(where/toy_asr1/hrf_xs.json)" in (tmp_path / "else/RESULTS.md").read_text()
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
        ("{}", "missing key schema"),
        (None, "holds the run of"),
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


def test_this_repositorys_results_are_valid():
    root = Path(verb.__file__).parents[2]
    results = read_results(root / "results")
    published = read_grids(root / "results")
    if results or published:
        committed = (root / "RESULTS.md").read_text(encoding="utf-8")
        plotted = {p.parent.name for p in (root / "results").glob("*/*_bytes.svg")}
        benchmarks = read_benchmarks(root / "results")
        assert committed == results_page(
            results,
            plotted=plotted,
            benchmarks=benchmarks,
            committed_grids=published,
            of_stacks=read_stacks(root / "results"),
            papers=read_claims(root / "results"),
        )
    for result in results:
        for score in result["scores"]:
            validate(score, any_score, result["tag"])


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
