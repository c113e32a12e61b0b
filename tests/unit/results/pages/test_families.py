"""Families of nested systems on their recipe's page: members, baselines, times, plot."""

import copy

import pytest

from espnet_ext.results.pages.families import (
    family_section,
    find_families,
    size_series,
    without_families,
)
from espnet_ext.results.pages.index import readme_with_results
from espnet_ext.results.pages.recipe import recipe_page
from espnet_ext.results.plots.sizes import plot_sizes
from espnet_ext.results.schema import NOT_MEASURED, Result
from espnet_ext.results.store import Results
from espnet_ext.validation import parse

VERSUS = {
    "metric": "wer",
    "difference": -0.02,
    "p": 0.01,
    "interval": [-0.03, -0.01],
    "mapsswe": {"segments": 40, "z": -2.0, "p": 0.04},
}


def run(result, tag, variant, size, wer, seconds=100.0, baseline=None, nested=False):
    made = copy.deepcopy(result) | {"tag": tag, "variant": variant, "bytes": size}
    made["training"]["seconds"] = seconds
    made["config"]["encoder_conf"] = {"nested": {}} if nested else {}
    made["scores"] = made["scores"][:1]
    score = made["scores"][0]
    score["metrics"]["wer"] |= {"value": wer, "interval": [wer - 0.01, wer + 0.01]}
    score["comparisons"] = [] if baseline is None else [VERSUS | {"baseline": baseline}]
    return made


def read(runs) -> list[Result]:
    return [parse(Result, one, one["tag"]) for one in runs]


def section(family) -> str:
    return "\n".join(family_section(family))


def committed(runs) -> Results:
    return Results(runs={f"toy_asr1/{one.name}": one for one in read(runs)})


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
    (family,) = find_families(read(runs))
    assert [m.variant for m in family.members] == ["6L-8-32b", "2L-8-32b", "2L-8-4b"]
    assert {v: r.tag for v, r in family.baselines.items()} == {
        "6L-8-32b": "six",
        "2L-8-32b": "two",
        "2L-8-4b": "two_4b",
    }
    assert [r.variant for r in family.rounded] == ["merged+4b"]
    assert [r.tag for r in without_families(read(runs))] == ["plain"]


def test_members_with_sizes_of_the_decoder_are_no_rounded_variants(result):
    large = run(result, "whole", "4L-48+4L-40-32b", 4_000_000, 0.3, nested=True)
    small = run(result, "whole", "4L-48+L0.3-40-3b", 400_000, 0.4, nested=True)
    (family,) = find_families(read([small, large]))
    assert [m.variant for m in family.members] == ["4L-48+4L-40-32b", "4L-48+L0.3-40-3b"]
    assert family.rounded == ()


def test_table_and_times(runs):
    (family,) = find_families(read(runs))
    text = section(family)
    row = next(line for line in text.splitlines() if line.startswith("| 2L-8-4b"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["0.30", "60.0 (59.0-61.0)"]
    # What the score was compared with; the baseline has 65.0 now.
    assert cells[5:7] == ["two_4b_2L-8-4b", "62.0"]
    assert cells[7] == "-2.0 (-3.0 to -1.0, p 0.010, MAPSSWE p 0.040, better)"
    assert "| six_merged+4b" in text and "rounded after training" in text
    # 600 + 300 + 350 seconds alone against 500 at once.
    assert "20 min 50 s for the 3 trained alone, 2.50 times the family's" in text
    assert "1: 1.20, 2: 1.80, 3: 2.50." in text
    row = next(line for line in text.splitlines() if "(six_merged+4b.json)" in line)
    assert "`espnet-ext train conf/train_hrf_xs.yaml`" in row and "10 min 0 s" in row


def test_what_else_a_member_was_compared_with_follows_the_table(runs):
    more = VERSUS | {"baseline": "plain", "difference": 0.01, "interval": [0.0, 0.02], "p": 0.3}
    member = next(one for one in runs if (one["tag"], one["variant"]) == ("one", "2L-8-32b"))
    member["scores"][0]["comparisons"].append(more)
    (family,) = find_families(read(runs))
    bullets = [line for line in section(family).splitlines() if line.startswith("- ")]
    assert len(bullets) == 1
    assert bullets[0].startswith("- 2L-8-32b: WER inconclusive against plain (+1.0 points")


def test_the_page_shows_a_family_in_its_section_alone(runs):
    text = recipe_page("toy_asr1", committed(runs))
    table, _, rest = text.partition("### Family one")
    assert "| plain " in table and "six" not in table
    assert "### plain" in rest and "### six" not in rest
    assert "## Famil" not in recipe_page("toy_asr1", committed(runs[:1]))


def test_an_ablation_stands_beside_the_whole_family(runs, result):
    ablated = {"nested": True, "seconds": 250.0}
    runs += [
        run(result, "ablated", "6L-8-32b", 4_000_000, 0.3, baseline="one", **ablated),
        run(result, "ablated", "2L-8-32b", 2_000_000, 0.4, baseline="one", **ablated),
    ]
    family = next(f for f in find_families(read(runs)) if f.tag == "ablated")
    assert {r.tag for r in family.baselines.values()} == {"one"}
    assert "4 min 10 s; of its baseline 8 min 20 s (one), 0.50 times that." in section(family)
    series = size_series(read(runs))
    assert list(series) == ["other runs", "family one", "families compared with these"]
    # Of families those have a name in the plot that are a tenth better than any smaller run, and
    # the smallest of the one that others are compared with.
    named = {label for points in series.values() for label, _ in points if label}
    every = [run for points in series.values() for _, run in points]
    assert len(every) == len(runs) and named
    smallest = min((run for run in every if run.tag == "one"), key=lambda run: run.bytes).name
    assert smallest in named
    for member in (run for run in every if run.name in named and run.tag in ("one", "ablated")):
        if member.name == smallest:
            continue
        smaller = [r for r in every if r.bytes < member.bytes]
        wer = member.scores[0].metrics["wer"].value
        assert all(wer <= 0.9 * r.scores[0].metrics["wer"].value for r in smaller)


def test_what_was_not_measured_is_said(runs):
    for one in runs:
        one["training"]["seconds"] = NOT_MEASURED
    runs[2]["bytes"] = runs[3]["bytes"] = runs[1]["bytes"] = NOT_MEASURED
    runs[1]["scores"][0]["comparisons"] = []
    (family,) = find_families(read(runs))
    text = section(family)
    assert f"Training time: {NOT_MEASURED}." in text
    row = next(line for line in text.splitlines() if line.startswith("| 2L-8-4b"))
    assert row.count(NOT_MEASURED) == 4  # bytes, baseline, its WER, difference
    assert not family.has_plot and family.plot not in text


def test_plot(runs, tmp_path):
    (family,) = find_families(read(runs))
    assert plot_sizes(family.series(), tmp_path / family.plot)
    drawn = (tmp_path / "family_one.svg").read_text(encoding="utf-8")
    for label in ("one, one training", "baselines", "rounded after training", ">2L-8-4b<"):
        assert label in drawn


def test_the_readme_leaves_families_out(runs, tmp_path):
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    text = readme_with_results(f"{begin}\n{end}\n", committed(runs), tmp_path)
    assert "| plain" in text and "six" not in text and "2L-8-32b" not in text
    assert "##" not in readme_with_results(f"{begin}\n{end}\n", committed(runs[1:]), tmp_path)
