"""The result schema: what it takes, and the key that it names when it refuses."""

import copy
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.results.schema import NOT_MEASURED, as_json
from tests.fixtures.a_run import read


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
