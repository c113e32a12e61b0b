"""The result schema, tables, plots, RESULTS.md and the verb `report`, on miniature runs."""

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ext.bin import report as verb
from espnet_ext.config import load_config
from espnet_ext.errors import UserError
from espnet_ext.files import write_json
from espnet_ext.report.page import README_MARKERS, WHOLE_JOB, results_page
from espnet_ext.report.plots import plot_wer_bytes, read_curves
from espnet_ext.report.result import collect, read_results
from espnet_ext.report.schema import NOT_MEASURED, RESULT, SCORE, plain, validate
from espnet_ext.report.table import (
    comparison,
    decoding_rtf,
    duration,
    macs,
    markdown,
    summary_table,
    verdict,
)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "whole_job.py"

# The form of espnet2.train.reporter's log_message, with an epoch trained again after a kill.
LOG = """\
[host] 2026-01-01 00:00:01,000 (trainer:392) INFO: 1epoch results: [train] iter_time=1.2e-04, \
loss=5.210, acc=0.101, train_time=0.3, time=1 minute and 2.5 seconds, total_count=10, \
[valid] loss=6.000, cer=0.9, time=2 seconds, total_count=2, [att_plot] time=1 second
[host] 2026-01-01 00:00:09,000 (trainer:810) INFO: 2epoch:train:1-5batch: loss=9.9
[host] 2026-01-01 00:00:10,000 (trainer:392) INFO: 2epoch results: [train] loss=7.000, [valid] \
loss=nan
[host] 2026-01-01 00:01:10,000 (trainer:392) INFO: 2epoch results: [train] loss=4.000, [valid] \
loss=3.500
"""


def a_score(name: str = "test", value: float = 0.4, baseline: bool = True) -> dict:
    rate = {
        "value": value,
        "interval": [value - 0.02, value + 0.02],
        "interval_by_speaker": [value - 0.1, value + 0.1],
        "substitutions": 30,
        "insertions": 4,
        "deletions": 6,
    }
    score = {
        "set": name,
        "method": "ctc_greedy",
        "normalisation": "lower",
        "utterances": 20,
        "speakers": 50 if name == "test" else 5,
        "words": 100,
        "characters": 420,
        "bootstrap": {"resamples": 1000, "seed": 0, "confidence": 0.95},
        "wer": rate,
        "cer": {**rate, "value": value / 2},
        "baseline": None,
    }
    if baseline:
        score["baseline"] = {
            "tag": "base_xs",
            "wer_difference": -0.03,
            "interval": [-0.05, -0.01],
            "interval_by_speaker": [-0.08, 0.02],
            "p": 0.01,
            "cer_difference": 0.02,
            "cer_interval": [0.01, 0.03],
            "cer_interval_by_speaker": [0.005, 0.04],
            "cer_p": 0.002,
        }
    return score


def train_record() -> dict:
    return {
        "seconds": 754.2,
        "peak_rss_mb": 812.5,
        "command": "/somewhere/bin/espnet-ext train conf/train_hrf_xs.yaml",
        "epochs": 2,
        "seed": 7,
        "commit": "abc1234",
        "versions": {"torch": "2.14.1", "espnet": "202611"},
        "machine": {"cpu": "some CPU", "cores": 2},
        "config": {
            "encoder": "hrf_conformer",
            "encoder_conf": {"ratio": 4.0},
            "recipe": {"average": 3, "decode": {"ctc_att_beam": {}}},
        },
    }


def make_run(recipe: Path, tag: str, sets: tuple[str, ...] = ("test", "unseen")) -> Path:
    """Write what stages 4 to 7 leave behind; return the config."""
    config = recipe / "conf" / f"train_{tag}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("encoder: hrf_conformer\n")
    exp = recipe / "exp" / tag
    write_json(exp / "train.json", train_record())
    (exp / "train.log").write_text(LOG)
    deploy = {"variant": "merged", "parameters": {"encoder_blocks": 1000000, "total": 1500000}}
    deploy |= {"training_parameters": {"total": 9000000}, "macs_per_second": 61000000}
    write_json(exp / "deploy/merged/deploy.json", {**deploy, "bytes": 6100000, "verified": {}})
    for name in sets:
        decode = {"rtf": 0.0812, "audio_seconds": 900.0, "seconds": 73.1, "utterances": 20}
        decode |= {"peak_rss_mb": 700.0, "threads": 1, "device": "cpu"}
        write_json(exp / "decode/merged/ctc_greedy" / name / "decode.json", decode)
        write_json(exp / "score/merged/ctc_greedy" / f"{name}.json", a_score(name))
    return config


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    folder = tmp_path / "repository" / "egs" / "toy" / "asr1"
    make_run(folder, "hrf_xs")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def result(recipe):
    found = collect(load_config("conf/train_hrf_xs.yaml"), "merged", recipe)
    return json.loads(json.dumps(found))


def run_verb(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args(list(arguments)))


def edit(path: str, change) -> None:
    value = json.loads(Path(path).read_text())
    change(value)
    write_json(path, value)


# --- schema


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r.pop("commit"), "missing key commit"),
        (lambda r: r["training"].pop("epochs"), "missing key training.epochs"),
        (lambda r: r.update(byte=1), "unknown key 'byte'; did you mean 'bytes'?"),
        (lambda r: r["scores"][0]["wer"].update(val=1), "unknown key 'val'"),
        (lambda r: r.update(bytes=None), "bytes must be a whole number"),
        (lambda r: r.update(bytes=1.5), "bytes must be a whole number"),
        (lambda r: r.update(bytes=True), "bytes must be a whole number"),
        (lambda r: r.update(bytes=-1), "bytes must be a whole number"),
        (lambda r: r["training"].update(seconds=float("nan")), "training.seconds must be a finite"),
        (lambda r: r["training"].update(seconds="unknown"), "(or 'not measured')"),
        (lambda r: r.update(tag=""), "tag must be a text"),
        (lambda r: r.update(scores=[]), "scores must be a list"),
        (lambda r: r.update(versions={}), "versions is empty"),
        (lambda r: r.update(machine="pc"), "machine must be keys and values"),
        (lambda r: r["scores"][1]["cer"].update(interval=[2, 1]), "scores[1].cer.interval must"),
        (lambda r: r["scores"][1]["cer"].update(interval=[1]), "scores[1].cer.interval must"),
        (lambda r: r["config"].update(rate=float("inf")), "config.rate must be a finite"),
        (lambda r: r["config"].update(path=Path()), "config.path holds"),
    ],
)
def test_schema_refuses_and_names_the_key(result, change, part):
    validate(result, RESULT, "a.json")
    broken = copy.deepcopy(result)
    change(broken)
    with pytest.raises(UserError) as error:
        validate(broken, RESULT, "a.json")
    assert str(error.value).startswith("a.json: ") and part in str(error.value)
    assert "\n" not in str(error.value)


def test_schema_takes_what_was_not_measured_and_what_has_no_meaning(result):
    for key in ("bytes", "parameters", "macs_per_second", "seed"):
        result[key] = NOT_MEASURED
    result["scores"][0]["wer"]["interval"] = None
    result["scores"][0]["baseline"] = None
    validate(result, RESULT, "a.json")
    with pytest.raises(UserError):
        validate({**result, "tag": None}, RESULT, "a.json")


def test_schema_of_a_plain_value_refuses_keys_that_are_no_strings():
    with pytest.raises(UserError, match="not a string"):
        validate({"a": {1: 2}}, plain, "x")


# --- collecting


def test_result_holds_what_the_stages_measured(result):
    assert (result["dataset"], result["task"], result["tag"]) == ("toy", "asr1", "hrf_xs")
    assert result["parameters"]["total"] == 1500000 and result["bytes"] == 6100000
    assert result["training"]["parameters"] == {"total": 9000000}
    assert [s["set"] for s in result["scores"]] == ["test", "unseen"]
    assert result["decoding"][0]["rtf"] == 0.0812
    assert result["encoder"] == "hrf_conformer"
    assert result["command"] == "espnet-ext train conf/train_hrf_xs.yaml"
    # How it was trained, and what was done with it since.
    recipe = result["config"]["recipe"]
    assert (recipe["average"], recipe["decode"]) == (3, {"ctc_greedy": {}})


def test_result_names_no_folder_of_this_machine(recipe):
    where = str(recipe / "data")
    edit("exp/hrf_xs/train.json", lambda t: t["config"].update(lists=[where, f"{Path.home()}/x"]))
    run_verb("conf/train_hrf_xs.yaml")
    config = json.loads(Path("exp/hrf_xs/result.json").read_text())["config"]
    assert config["lists"] == ["egs/toy/asr1/data", "~/x"]


def test_numbers_that_were_not_measured_are_written_so(recipe, capsys):
    for key in ("seconds", "seed"):
        edit("exp/hrf_xs/train.json", lambda t, key=key: t.pop(key))
    none = {"bytes": None, "macs_per_second": None, "training_parameters": {}}
    edit("exp/hrf_xs/deploy/merged/deploy.json", lambda d: d.update(none))
    edit("exp/hrf_xs/decode/merged/ctc_greedy/test/decode.json", lambda d: d.pop("rtf"))
    run_verb("conf/train_hrf_xs.yaml")
    result = json.loads(Path("exp/hrf_xs/result.json").read_text())
    header, rows = summary_table([result])
    row = dict(zip(header, rows[0], strict=True))
    for column in ("file MB", "MACs/s", "RTF 1-thread", "training time"):
        assert row[column] == NOT_MEASURED
    assert row["params"] == "1.50 M"
    assert result["training"]["parameters"] == NOT_MEASURED
    assert "seed: not measured" in results_page([result])
    assert not Path("exp/hrf_xs/images/wer_bytes.png").exists()


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("train.json", "run stage 4"),
        ("deploy/merged/deploy.json", "run stage 5"),
        ("decode/merged/ctc_greedy/test/decode.json", "run stage 6"),
        ("score/merged/ctc_greedy/test.json", "run stage 7"),
    ],
)
def test_missing_or_broken_output_of_a_stage(recipe, missing, part):
    path = Path("exp/hrf_xs", missing)
    whole = path.read_text()
    for content in (None, whole[: len(whole) // 2], "[]"):
        path.write_text(whole)
        if content is None:
            if "score" in missing:
                for score in path.parent.glob("*.json"):
                    score.unlink()
            else:
                path.unlink()
        else:
            path.write_text(content)
        with pytest.raises(UserError) as error:
            run_verb("conf/train_hrf_xs.yaml")
        assert part in str(error.value) and "\n" not in str(error.value)
    assert not Path("exp/hrf_xs/result.json").exists()


def test_no_record_no_result(recipe):
    edit("exp/hrf_xs/train.json", lambda t: t.pop("commit"))
    with pytest.raises(UserError, match="missing key commit; a result is not reported"):
        run_verb("conf/train_hrf_xs.yaml")


def test_score_that_does_not_fit(recipe):
    edit("exp/hrf_xs/score/merged/ctc_greedy/test.json", lambda s: s["wer"].pop("value"))
    with pytest.raises(UserError, match=r"test\.json: missing key wer\.value"):
        run_verb("conf/train_hrf_xs.yaml")


# --- tables


def test_row_of_the_summary(result):
    header, rows = summary_table([result])
    row = dict(zip(header, rows[0], strict=True))
    assert row["params"] == "1.50 M" and row["file MB"] == "6.10" and row["MACs/s"] == "61.0 M"
    assert row["RTF 1-thread"] == "0.0812" and row["training time"] == "12 min 34 s"
    assert row["test WER % (95 % CI)"] == "40.0 (38.0-42.0)"
    assert row["unseen WER % (95 % CI)"] == "40.0 (38.0-42.0; by speaker 30.0-50.0)"
    recipe = {"baseline": "gone_xs"}
    for score in result["scores"]:
        score["baseline"] = None
    assert summary_table([result])[1][0][header.index("WER vs baseline")] == "no baseline named"
    result["config"]["recipe"] = recipe
    assert summary_table([result])[1][0][header.index("WER vs baseline")] == NOT_MEASURED
    assert row["WER vs baseline"].startswith("test -3.0 (p 0.010, better); unseen -3.0")


def test_set_that_one_run_lacks_is_not_measured(result):
    other = copy.deepcopy(result)
    other["tag"], other["scores"] = "other", other["scores"][:1]
    header, rows = summary_table([result, other])
    assert rows[1][header.index("unseen CER % (95 % CI)")] == NOT_MEASURED
    assert len({len(line) for line in markdown(header, rows).splitlines()}) == 1


def test_verdicts_need_the_test_and_few_speakers_need_more():
    many, few = a_score("test"), a_score("unseen")
    assert verdict(many, "wer") == "better" and verdict(many, "cer") == "worse"
    assert verdict(few, "wer") == "not told apart"  # the interval by speaker holds 0
    assert verdict(few, "cer") == "worse"
    many["baseline"]["p"] = 0.2
    assert verdict(many, "wer") == "not told apart"
    many["baseline"].update(wer_difference=0.0, interval=[0.0, 0.0], p=1.0)
    assert verdict(many, "wer") == "equal"
    many["baseline"].update(p=None, interval=None)
    assert "too few utterances to test" in comparison(many, "wer")
    assert "worse than base_xs (+2.0 points" in comparison(many, "cer")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (NOT_MEASURED, NOT_MEASURED)],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_units_and_conditions_are_told():
    assert macs(1.5e9) == "1.50 G" and macs(NOT_MEASURED) == NOT_MEASURED
    assert decoding_rtf({"rtf": 0.5, "threads": 4, "device": "cuda"}) == "0.5 (4 threads, cuda)"
    assert decoding_rtf({"rtf": 0.5, "threads": 1, "device": "cpu"}) == "0.5"
    assert markdown(["a"], [["x|y"]]).splitlines()[2] == "| x\\|y |"


# --- curves and plots


def test_curves_from_the_training_log(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    curves = read_curves([log])
    assert curves["loss"] == {"train": {1: 5.21, 2: 4.0}, "valid": {1: 6.0, 2: 3.5}}
    assert curves["acc"] == {"train": {1: 0.101}} and curves["cer"] == {"valid": {1: 0.9}}
    assert "time" not in curves and "train_time" not in curves


def test_plot_is_the_same_for_the_same_results(result, tmp_path):
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert all(plot_wer_bytes([result], path) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    result["scores"][0]["wer"]["value"] = 0.9
    plot_wer_bytes([result], paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()
    result["bytes"] = NOT_MEASURED
    assert not plot_wer_bytes([result], tmp_path / "c.svg")
    assert not (tmp_path / "c.svg").exists()


# --- the verb


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
        "torch 2.14.1",
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
    exp = Path("exp/hrf_xs")
    for stage in ("deploy", "decode", "score"):
        (exp / stage / "merged").rename(exp / stage / "shared")
    run_verb("conf/train_hrf_xs.yaml", "--variant", "shared", "--publish")
    assert (exp / "result_shared.json").is_file()
    assert (recipe.parents[2] / "results/toy_asr1/hrf_xs_shared.json").is_file()


def test_tag_names_the_experiment(recipe):
    Path("exp/hrf_xs").rename("exp/again")
    run_verb("conf/train_hrf_xs.yaml", "--tag", "again")
    assert json.loads(Path("exp/again/result.json").read_text())["tag"] == "again"


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
    if results:
        committed = (root / "RESULTS.md").read_text(encoding="utf-8")
        plotted = {p.parent.name for p in (root / "results").glob("*/wer_bytes.svg")}
        measured = root / "results" / WHOLE_JOB
        whole_job = json.loads(measured.read_text()) if measured.is_file() else None
        assert committed == results_page(results, plotted=plotted, whole_job=whole_job)
    for result in results:
        for score in result["scores"]:
            validate(score, SCORE, result["tag"])


def test_reporting_imports_neither_torch_nor_espnet(recipe):
    code = (
        "import sys; sys.argv = ['espnet-ext', 'report', 'conf/train_hrf_xs.yaml']\n"
        "from espnet_ext.bin.main import main\n"
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
