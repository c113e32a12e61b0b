"""The result schema, tables and plots, on miniature runs."""

import copy
import json
from pathlib import Path

import pytest

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.results.pages.main import results_page
from espnet_ext.results.pages.plots import plot_score_bytes, read_curves
from espnet_ext.results.pages.tables import (
    comparison,
    decoding_rtf,
    duration,
    macs,
    markdown,
    summary_table,
    verdict,
)
from espnet_ext.results.run import collect
from espnet_ext.results.schema import NOT_MEASURED, RESULT, plain, validate
from tests.fixtures.a_run import LOG, a_score, edit, run_verb

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


def test_a_checkpoint_that_is_not_the_average_is_told(recipe):
    config = load_config("conf/train_hrf_xs.yaml")
    assert summary_table([collect(config, "merged", recipe)])[1][0][0] == "hrf_xs"
    other = {"checkpoint": "exp/hrf_xs/2epoch.pth"}
    edit("exp/hrf_xs/deploy/merged/deploy.json", lambda d: d.update(other))
    result = collect(config, "merged", recipe)
    assert summary_table([result])[1][0][0] == "hrf_xs (2epoch.pth)"
    assert "- checkpoint: 2epoch.pth\n" in results_page([result])


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
    assert all(plot_score_bytes([result], path) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    result["scores"][0]["wer"]["value"] = 0.9
    plot_score_bytes([result], paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()
    result["bytes"] = NOT_MEASURED
    assert not plot_score_bytes([result], tmp_path / "c.svg")
    assert not (tmp_path / "c.svg").exists()
