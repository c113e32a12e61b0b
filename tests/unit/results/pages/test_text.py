"""Texts of pages: units, conditions, and names that are no HTML."""

import pytest

from espnet_ext.results.pages.text import (
    duration,
    macs,
    markdown,
    real_time_factor,
)
from espnet_ext.results.schema import NOT_MEASURED, Decoding


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


def test_names_in_records_are_no_html(tmp_path):
    from espnet_ext.results.pages.text import markdown, without_tags

    table = markdown(["set"], [["<img src=x onerror=alert(1)>"], ["</td><script>"], ["p < 0.05"]])
    assert "<img" not in table and "<script" not in table and "</td" not in table
    assert "p < 0.05" in table
    assert without_tags("a <!-- b --> <?x?>") == "a &lt;!-- b --> &lt;?x?>"
