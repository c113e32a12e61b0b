"""Tables of sizes and scores, of one run and of several."""

import copy

from espnet_ext.experiment import Experiment
from espnet_ext.results.pages.scores import (
    other_trainings,
    run_table,
    scores_table,
    sizes_table,
)
from espnet_ext.results.pages.text import (
    TERMINAL,
    markdown,
    print_table,
)
from espnet_ext.results.run import collect
from espnet_ext.results.schema import NOT_MEASURED
from tests.fixtures.a_run import edit, page, read


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


def test_a_baseline_of_another_training_than_the_published_one_is_named(result):
    other = copy.deepcopy(result) | {"tag": "base_xs"}
    for score in other["scores"]:
        score["metrics"]["wer"]["value"] = 0.43  # what the run was compared with: 40 + 3
        score["comparisons"] = []
    assert other_trainings([read(result), read(other)]) == []
    assert other_trainings([read(result)]) == []
    other["scores"][1]["metrics"]["wer"]["value"] = 0.45
    (line,) = other_trainings([read(result), read(other)])
    assert line == "- hrf_xs, unseen: base_xs had WER 43.0; the published one has 45.0."
    second = copy.deepcopy(other) | {"tag": "more_xs"}
    compared = result["scores"][1]["comparisons"]
    compared.append(compared[0] | {"baseline": "more_xs", "difference": 0.15})
    lines = other_trainings([read(result), read(other), read(second)])
    assert lines == [line, line.replace("base_xs had WER 43.0", "more_xs had WER 25.0")]


def test_the_table_of_a_run_has_its_baseline_and_fits_a_terminal(result, capsys):
    run = read(result)
    header, rows = run_table(run, {})
    assert len(header) <= 6
    assert [row[0] for row in rows] == ["hrf_xs", "baseline base_xs"] * 2
    # What it was compared with: 40 + 3 and 20 - 2; no interval, for its result is not here.
    assert rows[1][header.index("WER % (95 % CI)") :] == ["43.0", "18.0"]
    assert rows[1][header.index("MB")] == NOT_MEASURED
    other = copy.deepcopy(result) | {"tag": "base_xs", "bytes": 7_000_000}
    for score in other["scores"]:
        score["metrics"]["wer"] |= {"value": 0.43, "interval": [0.41, 0.45]}
        score["comparisons"] = []
    header, rows = run_table(run, {"base_xs": read(other)})
    assert rows[1][header.index("MB") :] == ["7.00", "43.0 (41.0-45.0)", "18.0"]
    second = copy.deepcopy(result)
    pairs = second["scores"][0]["comparisons"]
    pairs.append(pairs[0] | {"baseline": "more_xs", "difference": 0.15})
    both = run_table(read(second), {"base_xs": read(other)})[1]
    names = ["hrf_xs", "baseline base_xs", "baseline more_xs", "hrf_xs", "baseline base_xs"]
    assert [row[0] for row in both] == names and both[1] == rows[1]
    assert both[2][header.index("MB") :] == [NOT_MEASURED, "25.0", NOT_MEASURED]
    print_table(header, [[cell * 3 for cell in row] for row in rows])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > len(rows) + 2  # folded
    assert max(map(len, printed)) <= TERMINAL


def test_a_table_that_is_too_wide_cuts_names_after_a_slash_or_an_underscore(capsys):
    name = "nested_whisper_tiny_m/4L-1536-32b"
    print_table(["run", "note"], [[name, "short"]])
    assert name in capsys.readouterr().out  # where there is room nothing is cut
    print_table(["run", "note"], [[name, "many words " * 12], ["a_b", ""]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [
        "nested_whisper_tiny_m/",
        "4L-1536-32b",
    ]
    assert max(map(len, lines)) <= TERMINAL
    # Where there are many columns the pieces of names are shorter, and not cut further.
    cells = ["pooled_whisper_tiny_s", *["3,089,433 of 4,000"] * 4, "inconclusive, p 0.512"]
    print_table([*"abcde", "against pooled_whisper_tiny_s"], [cells])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= TERMINAL
    names = [line.split("|")[1].strip() for line in lines[3:]]
    assert [name for name in names if name][-2:] == ["pooled_whisper_", "tiny_s"]
    print_table(["run", "note"], [["a" * 30, "many words " * 12]])
    assert "a" * 30 in capsys.readouterr().out.splitlines()[2]  # nowhere to cut, no empty line


def test_a_run_that_was_not_compared_is_shown_with_the_published_baseline(result):
    for score in result["scores"]:
        score["comparisons"] = []
    other = copy.deepcopy(result) | {"tag": "base_xs"}
    assert [row[0] for row in run_table(read(result), {})[1]] == ["hrf_xs"] * 2
    rows = run_table(read(result), {"base_xs": read(other)})[1]
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
