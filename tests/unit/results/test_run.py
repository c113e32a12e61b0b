"""A result collected from what the stages of a miniature run left behind."""

import json
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.results.pages.scores import sizes_table
from espnet_ext.results.schema import NOT_MEASURED
from tests.fixtures.a_run import edit, page, read, run_verb


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
    for name in ("test", "unseen"):
        edit(f"exp/hrf_xs/decode/merged/ctc_greedy/{name}/decode.json", lambda d: d.pop("rtf"))
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


def test_the_speed_of_a_run_is_that_of_the_first_set_that_was_timed(result):
    found = read(result)
    assert found.timed is found.decoding[0]
    unknown = found.decoding[0].model_copy(update={"rtf": NOT_MEASURED})
    several = found.model_copy(update={"decoding": [unknown, *found.decoding]})
    assert several.timed == found.decoding[0]
    assert found.model_copy(update={"decoding": [unknown]}).timed is unknown
