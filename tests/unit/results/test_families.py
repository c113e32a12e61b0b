"""Families of nested systems on the page: members, what stands beside them, times, plot."""

import copy
from pathlib import Path

import pytest

from espnet_ext.results.pages.families import find_families, page_lines, plot_family, without
from espnet_ext.results.pages.main import readme_with_results, results_page
from espnet_ext.results.schema import NOT_MEASURED

VERSUS = {
    "wer_difference": -0.02,
    "p": 0.01,
    "interval": [-0.03, -0.01],
    "interval_by_speaker": None,
    "mapsswe": {"p": 0.04},
}


def run(result, tag, variant, size, wer, seconds=100.0, baseline=None, nested=False):
    made = copy.deepcopy(result) | {"tag": tag, "variant": variant, "bytes": size}
    made["training"]["seconds"] = seconds
    made["config"]["encoder_conf"] = {"nested": {}} if nested else {}
    made["scores"] = made["scores"][:1]
    score = made["scores"][0]
    score["wer"] = score["wer"] | {"value": wer, "interval": [wer - 0.01, wer + 0.01]}
    score["baseline"] = None if baseline is None else VERSUS | {"tag": baseline}
    return made


@pytest.fixture
def runs(result):
    family = {"nested": True, "seconds": 500.0}
    return [
        run(result, "plain", "merged", 4_100_000, 0.5),
        run(result, "one", "2L-8-4b", 300_000, 0.6, baseline="two_4b", **family),
        run(result, "one", "6L-8-32b", 4_000_000, 0.3, baseline="six", **family),
        run(result, "one", "2L-8-32b", 2_000_000, 0.4, baseline="two", **family),
        run(result, "six", "merged", 4_000_000, 0.35, 600.0),
        run(result, "six", "merged+4b", 500_000, 0.9, 600.0),
        run(result, "two", "merged", 2_000_000, 0.45, 300.0),
        run(result, "two_4b", "2L-8-4b", 300_000, 0.65, 350.0, nested=True),
    ]


def test_members_stand_by_size_beside_what_their_score_names(runs):
    (family,) = find_families(runs)
    assert [m["variant"] for m in family.members] == ["6L-8-32b", "2L-8-32b", "2L-8-4b"]
    assert {v: r["tag"] for v, r in family.beside.items()} == {
        "6L-8-32b": "six",
        "2L-8-32b": "two",
        "2L-8-4b": "two_4b",
    }
    assert [r["variant"] for r in family.rounded] == ["merged+4b"]
    assert [r["tag"] for r in without(runs)] == ["plain"]


def test_table_and_times(runs):
    (family,) = find_families(runs)
    text = "\n".join(page_lines(family, "results/toy_asr1"))
    row = next(line for line in text.splitlines() if line.startswith("| 2L-8-4b"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["0.30", "60.0 (59.0-61.0)"]
    assert cells[5:] == ["two_4b_2L-8-4b", "65.0", "-2.0 (p 0.010, MAPSSWE p 0.040, better)"]
    assert "| six_merged+4b" in text and "rounded after training" in text
    # 600 + 300 + 350 seconds alone against 500 at once.
    assert "20 min 50 s for the 3 trained alone, 2.50 times the family's" in text
    assert "1: 1.20, 2: 1.80, 3: 2.50." in text
    row = next(
        line for line in text.splitlines() if "(results/toy_asr1/six_merged+4b.json)" in line
    )
    assert "`espnet-ext train conf/train_hrf_xs.yaml`" in row and "10 min 0 s" in row


def test_the_page_shows_a_family_in_its_section_alone(runs):
    text = results_page(runs)
    table, _, section = text.partition("### Family one")
    assert "| plain " in table and "six" not in table
    assert "### plain" in section and "### six" not in section
    assert "## Family" not in results_page(runs[:1])


def test_an_ablation_stands_beside_the_whole_family(runs, result):
    ablated = {"nested": True, "seconds": 250.0}
    runs += [
        run(result, "ablated", "6L-8-32b", 4_000_000, 0.3, baseline="one", **ablated),
        run(result, "ablated", "2L-8-32b", 2_000_000, 0.4, baseline="one", **ablated),
    ]
    family = next(f for f in find_families(runs) if f.tag == "ablated")
    assert {r["tag"] for r in family.beside.values()} == {"one"}
    text = "\n".join(page_lines(family, "results/toy_asr1"))
    assert "4 min 10 s; beside it 8 min 20 s (one), 0.50 times that." in text


def test_what_was_not_measured_is_said(runs):
    for one in runs:
        one["training"]["seconds"] = NOT_MEASURED
    runs[2]["bytes"] = runs[3]["bytes"] = runs[1]["bytes"] = NOT_MEASURED
    runs[1]["scores"][0]["baseline"] = None
    (family,) = find_families(runs)
    text = "\n".join(page_lines(family, "results/toy_asr1"))
    assert f"Training time: {NOT_MEASURED}." in text
    row = next(line for line in text.splitlines() if line.startswith("| 2L-8-4b"))
    assert row.count(NOT_MEASURED) == 4  # bytes, beside it, its WER, difference
    assert not plot_family(family, Path("never.svg"))


def test_plot(runs, tmp_path):
    (family,) = find_families(runs)
    assert plot_family(family, tmp_path / family.plot)
    drawn = (tmp_path / "family_one.svg").read_text(encoding="utf-8")
    for label in ("one, one training", "beside it", "rounded after training"):
        assert label in drawn


def test_the_readme_leaves_families_out(runs):
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    text = readme_with_results(f"{begin}\n{end}\n", runs)
    assert "| plain" in text and "six" not in text and "2L-8-32b" not in text
    assert "##" not in readme_with_results(f"{begin}\n{end}\n", runs[1:])
