"""The result schema, comparisons, tables and plots, on miniature runs."""

import copy
import json
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.results.comparison import Comparison
from espnet_ext.results.pages.recipe import recipe_page
from espnet_ext.results.pages.scores import run_table, scores_table, sizes_table
from espnet_ext.results.pages.text import (
    TERMINAL,
    duration,
    macs,
    markdown,
    print_table,
    real_time_factor,
)
from espnet_ext.results.plots.sizes import plot_sizes
from espnet_ext.results.plots.training import read_curves
from espnet_ext.results.run import collect
from espnet_ext.results.schema import NOT_MEASURED, Decoding, RecognitionScore, Result, as_json
from espnet_ext.results.store import Results
from espnet_ext.validation import parse
from tests.fixtures.a_run import LOG, a_score, edit, run_verb


def read(value) -> Result:
    """A result as JSON holds it, checked."""
    return parse(Result, value, "a.json")


def page(result) -> str:
    """The page of a recipe with one run."""
    found = result if isinstance(result, Result) else read(result)
    return recipe_page("toy_asr1", Results(runs={f"toy_asr1/{found.name}": found}))


# --- schema


def cer(result):
    """A metric of a result."""
    return result["scores"][1]["metrics"]["cer"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r.pop("commit"), "missing key commit"),
        (lambda r: r["training"].pop("epochs"), "missing key training.epochs"),
        (lambda r: r.update(byte=1), "unknown key 'byte'; did you mean 'bytes'?"),
        (lambda r: r["scores"][0]["metrics"]["wer"].update(val=1), "unknown key 'val'"),
        (lambda r: r.update(bytes=None), "bytes must be a whole number"),
        (lambda r: r.update(bytes=1.5), "bytes must be a whole number"),
        (lambda r: r.update(bytes=True), "bytes must be a whole number"),
        (lambda r: r.update(bytes=-1), "bytes must be a whole number"),
        (lambda r: r["training"].update(seconds=float("nan")), "training.seconds must be a finite"),
        (lambda r: r["training"].update(seconds="unknown"), "(or 'not measured')"),
        (lambda r: r.update(tag=""), "tag must be a text"),
        (lambda r: r.update(scores=[]), "scores must have something in it"),
        (lambda r: r.update(versions={}), "versions must have something in it"),
        (lambda r: r.update(schema_version=2), "schema_version: 2 is another version than 3"),
        (lambda r: r["scores"][0].update(task="asx"), "unknown scores[0].task 'asx'; did you mean"),
        (lambda r: r.update(machine="pc"), "machine must be keys and values"),
        (lambda r: cer(r).update(interval=[2, 1]), "scores[1].metrics.cer.interval must"),
        (lambda r: cer(r).update(interval=[1]), "scores[1].metrics.cer.interval must"),
        (lambda r: r["config"].update(rate=float("inf")), "config.rate must be a finite"),
        (lambda r: r["config"].update(path=Path()), "config.path holds"),
    ],
)
def test_schema_refuses_and_names_the_key(result, change, part):
    read(result)
    broken = copy.deepcopy(result)
    change(broken)
    with pytest.raises(UserError) as error:
        read(broken)
    assert str(error.value).startswith("a.json: ") and part in str(error.value)
    assert "\n" not in str(error.value)


def test_schema_takes_what_was_not_measured_and_what_has_no_meaning(result):
    for key in ("bytes", "parameters", "macs_per_second", "seed"):
        result[key] = NOT_MEASURED
    result["scores"][0]["metrics"]["wer"]["interval"] = None
    result["scores"][0]["comparisons"] = []
    read(result)
    with pytest.raises(UserError):
        read({**result, "tag": None})


def test_schema_of_a_plain_value_refuses_keys_that_are_no_strings(result):
    with pytest.raises(UserError, match=r"config\.a has the key 1, which is not"):
        read({**result, "config": {"a": {1: 2}}})


def test_a_file_is_what_was_read(result):
    assert as_json(read(result)) == result


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
    header, rows = sizes_table([read(result)])
    row = dict(zip(header, rows[0], strict=True))
    for column in ("file MB", "MACs/s", "RTF 1-thread", "training time"):
        assert row[column] == NOT_MEASURED
    assert row["params"] == "1.50 M"
    assert result["training"]["parameters"] == NOT_MEASURED
    assert "seed: not measured" in page(result)
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
    path = "exp/hrf_xs/score/merged/ctc_greedy/test.json"
    edit(path, lambda s: s["score"]["metrics"]["wer"].pop("value"))
    message = r"test\.json: missing key score\.metrics\.wer\.value; run stage 7 again"
    with pytest.raises(UserError, match=message):
        run_verb("conf/train_hrf_xs.yaml")


# --- tables


def test_rows_of_the_tables(result):
    header, rows = sizes_table([read(result)])
    row = dict(zip(header, rows[0], strict=True))
    assert row["params"] == "1.50 M" and row["file MB"] == "6.10" and row["MACs/s"] == "61.0 M"
    assert row["RTF 1-thread"] == "0.0812" and row["training time"] == "12 min 34 s"
    header, rows = scores_table([read(result)])
    test, unseen = (dict(zip(header, row, strict=True)) for row in rows)
    assert (test["set"], unseen["set"]) == ("test", "unseen")
    assert test["WER % (95 % CI)"] == "40.0 (38.0-42.0)"
    assert unseen["WER % (95 % CI)"] == "40.0 (38.0-42.0; by speaker 30.0-50.0)"
    assert (test["baseline"], unseen["baseline"]) == ("base_xs", "base_xs")
    assert test["difference"] == "-3.0 (-5.0 to -1.0, p 0.010, better)"
    assert unseen["difference"].startswith("-3.0 (-5.0 to -1.0, by speaker -8.0 to +2.0, p 0.010")
    for score in result["scores"]:
        score["comparisons"] = []
    assert scores_table([read(result)])[1][0][header.index("baseline")] == "none"
    result["config"]["recipe"] = {"baseline": "gone_xs"}
    row = dict(zip(header, scores_table([read(result)])[1][0], strict=True))
    assert (row["baseline"], row["difference"]) == ("gone_xs", NOT_MEASURED)
    for published, text in (
        (["gone_xs"], NOT_MEASURED),
        (["hrf_xs"], f"{NOT_MEASURED}: baseline gone_xs is not published"),
    ):
        rows = scores_table([read(result)], published)[1]
        assert rows[0][header.index("difference")] == text


def test_the_table_of_a_run_has_its_baseline_and_fits_a_terminal(result, capsys):
    run = read(result)
    header, rows = run_table(run, None)
    assert len(header) <= 6
    assert [row[0] for row in rows] == ["hrf_xs", "baseline base_xs"] * 2
    # What it was compared with: 40 + 3 and 20 - 2; no interval, for its result is not here.
    assert rows[1][header.index("WER % (95 % CI)") :] == ["43.0", "18.0"]
    assert rows[1][header.index("MB")] == NOT_MEASURED
    other = copy.deepcopy(result) | {"tag": "base_xs", "bytes": 7_000_000}
    for score in other["scores"]:
        score["metrics"]["wer"] |= {"value": 0.43, "interval": [0.41, 0.45]}
        score["comparisons"] = []
    header, rows = run_table(run, read(other))
    assert rows[1][header.index("MB") :] == ["7.00", "43.0 (41.0-45.0)", "18.0"]
    print_table(header, [[cell * 3 for cell in row] for row in rows])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > len(rows) + 2  # folded
    assert max(map(len, printed)) <= TERMINAL


def test_a_run_that_was_not_compared_is_shown_with_the_published_baseline(result):
    for score in result["scores"]:
        score["comparisons"] = []
    other = copy.deepcopy(result) | {"tag": "base_xs"}
    assert [row[0] for row in run_table(read(result), None)[1]] == ["hrf_xs"] * 2
    rows = run_table(read(result), read(other))[1]
    assert [row[0] for row in rows] == ["hrf_xs", "published base_xs"] * 2
    assert rows[0][1:] == rows[1][1:]


def test_a_checkpoint_that_is_not_the_average_is_told(recipe):
    experiment = Experiment.load("conf/train_hrf_xs.yaml")
    assert sizes_table([collect(experiment, recipe)])[1][0][0] == "[hrf_xs](hrf_xs.json)"
    other = {"checkpoint": "exp/hrf_xs/2epoch.pth"}
    edit("exp/hrf_xs/deploy/merged/deploy.json", lambda d: d.update(other))
    result = collect(experiment, recipe)
    assert sizes_table([result])[1][0][0] == "[hrf_xs (2epoch.pth)](hrf_xs.json)"
    assert "- checkpoint: 2epoch.pth\n" in page(result)


def test_metric_that_one_run_lacks_is_not_measured(result):
    other = copy.deepcopy(result)
    other["tag"] = "other"
    for score in other["scores"]:
        del score["metrics"]["cer"]
    header, rows = scores_table([read(result), read(other)])
    assert rows[2][header.index("CER % (95 % CI)")] == NOT_MEASURED
    assert len({len(line) for line in markdown(header, rows).splitlines()}) == 1


# --- comparisons


def compared(name, metric, **change) -> Comparison:
    """A comparison of the fixture's scores, changed."""
    score = parse(RecognitionScore, a_score(name), "score")
    return score.compared(metric).model_copy(update=change)


def test_verdicts_need_the_test_and_few_speakers_need_more():
    assert compared("test", "wer").verdict() == "better"
    assert compared("test", "cer").verdict() == "worse"
    assert compared("unseen", "wer").verdict() == "inconclusive"
    assert compared("unseen", "cer").verdict() == "worse"
    assert compared("test", "wer", p=0.2).verdict() == "inconclusive"
    same = {"difference": 0.0, "interval": (0.0, 0.0)}
    assert compared("test", "wer", **same, p=1.0).verdict() == "equal"
    alone = compared("test", "wer", difference=0.0, p=None, interval=None)
    assert alone.verdict() == "inconclusive" and alone.sentence().endswith(": too few to test")
    assert "worse than base_xs (+2.0 points" in compared("test", "cer").sentence()


def test_what_is_inconclusive_says_why():
    sentence = compared("unseen", "wer").sentence()
    assert sentence.startswith("WER inconclusive against base_xs (-3.0 points; 95 % interval -5.0")
    assert sentence.endswith("by speaker -8.0 to +2.0, p 0.010): the interval by speaker holds 0")
    assert compared("test", "wer", p=0.2).sentence().endswith("): p is not below 0.05")
    assert ": " not in compared("test", "wer").sentence()


@pytest.mark.parametrize(
    ("metric", "gain", "ends"),
    [("wer", 0.03, (0.01, 0.05)), ("cer", -0.02, (-0.03, -0.01))],
)
def test_a_gain_is_positive_where_the_system_is_better(metric, gain, ends):
    found = compared("test", metric)
    assert (found.gain, found.gain_interval) == (gain, ends)
    few = compared("unseen", metric)
    assert few.gain_interval == tuple(sorted(-end for end in few.by_speaker))


# --- text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (NOT_MEASURED, NOT_MEASURED)],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_units_and_conditions_are_told():
    assert macs(1.5e9) == "1.50 G" and macs(NOT_MEASURED) == NOT_MEASURED
    log = Decoding.model_construct(rtf=0.5, threads=4, device="cuda")
    assert real_time_factor(log) == "0.5 (4 threads, cuda)"
    assert real_time_factor(log.model_copy(update={"threads": 1, "device": "cpu"})) == "0.5"
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
    def plot(name):
        return plot_sizes({"runs": [("a label", read(result))]}, tmp_path / name)

    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert all(plot(path) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "a label" in paths[0].read_text()
    result["scores"][0]["metrics"]["wer"]["value"] = 0.9
    plot(paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()
    result["bytes"] = NOT_MEASURED
    assert not plot("c.svg")
    assert not (tmp_path / "c.svg").exists()
