"""Grid files: what they stand for, each fault in one line, and the summary by hand."""

import argparse
import itertools
from typing import NamedTuple

import pytest
import yaml

from espnet_ext.cli import grid as verb
from espnet_ext.config.grid import Cell, System, read_grid
from espnet_ext.config.training import load_config
from espnet_ext.data.corpora.folds import read_folds, write_folds
from espnet_ext.data.kaldi_dir import Utterance, read_data_dir
from espnet_ext.data.parts import Part, part
from espnet_ext.errors import UserError
from espnet_ext.results.grids import Grid, summary
from espnet_ext.results.pages.grids import comparisons, scores_table
from espnet_ext.results.plots.grids import plot_grid
from espnet_ext.results.schema import SCHEMA_VERSION, as_json
from espnet_ext.stages.grid import GridRun, part_of, waves
from espnet_ext.validation import parse

BASE = {
    "encoder": "conformer",
    "encoder_conf": {"hrf": {"ratio": 4}},
    "seed": 1,
    "recipe": {"task": "cls", "classes": 3},
}
GRID = {
    "split": "voice",
    "seeds": [1, 2],
    "baseline": "light",
    "systems": {
        "light": {"config": "train_a_s.yaml"},
        "hrf": {
            "config": "train_a_s.yaml",
            "set": {"max_epoch": 3},
            "vary": {
                "encoder_conf.hrf.ratio": [2, 8],
                "encoder_conf.hrf.sites": [["ffn"], ["qkv", "project"]],
            },
        },
    },
}


def write(folder, content):
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf/train_a_s.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "conf/grid_some.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_key_below_a_single_value_is_refused(tmp_path):
    for value in (None, "hrf_conformer"):
        hrf = {"set": {"encoder_conf": value}, "vary": {"encoder_conf.hrf.ratio": [2, 8]}}
        content = {**GRID, "systems": {"light": GRID["systems"]["light"]}}
        content["systems"]["hrf"] = {"config": "train_a_s.yaml", **hrf}
        with pytest.raises(UserError, match="encoder_conf is a single value") as caught:
            for cell in read_grid(write(tmp_path, content)).cells(["voice-a"]):
                cell.config_text(tmp_path)
        assert "\n" not in str(caught.value)


def test_vary_stands_for_every_combination(tmp_path):
    found = read_grid(write(tmp_path, GRID))
    assert found.name == "some"
    assert [s.name for s in found.systems] == [
        "light",
        "hrf_ratio-2_sites-ffn",
        "hrf_ratio-2_sites-qkv+project",
        "hrf_ratio-8_sites-ffn",
        "hrf_ratio-8_sites-qkv+project",
    ]
    cells = found.cells(["voice-a", "voice-b", "voice-c"])
    assert len(cells) == 5 * 2 * 3
    assert len({cell.tag for cell in cells}) == len(cells)
    assert cells[0].set_name("test") == "voice-a/test"


def test_a_grid_is_no_training_config(tmp_path):
    path = write(tmp_path, GRID)
    with pytest.raises(UserError, match=f"a grid; run espnet-ext grid {path}"):
        load_config(path)


def test_fixed_sets_of_another_name(tmp_path):
    content = {key: value for key, value in GRID.items() if key != "split"}
    (cell, *_) = read_grid(write(tmp_path, {**content, "sets": "keyword_"})).cells([""])
    assert cell.set_name("test") == "keyword_test"
    written = yaml.safe_load(cell.config_text(tmp_path))
    assert written["recipe"]["train_set"] == "keyword_train"
    for wrong in ({**GRID, "sets": "keyword_"}, {**content, "sets": 3}):
        with pytest.raises(UserError, match=r"sets is for fixed sets|sets must be the"):
            read_grid(write(tmp_path, wrong))


def test_the_config_of_a_cell_states_its_difference(tmp_path):
    system = read_grid(write(tmp_path, GRID)).systems[3]
    folder = tmp_path / "exp/grid_some/x/voice-a_s2"
    folder.mkdir(parents=True)
    path = folder / "cell.yaml"
    path.write_text(Cell("some", system, "voice-a", 2).config_text(folder))
    config = load_config(path, "x")
    assert config.espnet["encoder"] == "conformer"
    assert config.espnet["encoder_conf"]["hrf"] == {"ratio": 8, "sites": ["ffn"]}
    assert (config.espnet["seed"], config.espnet["max_epoch"]) == (2, 3)
    assert (config.recipe.train_set, config.recipe.dev_set) == ("voice-a/train", "voice-a/dev")


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": [1, 1]}, "a seed occurs twice"),
        ({"part": "train"}, "part must be test or dev"),
        ({"baseline": "lite"}, "did you mean 'light'"),
        ({"systems": {}}, "systems must be names"),
        ({"systems": {"a": {"vary": {}}}}, "missing key systems.a.config"),
        ({"systems": {"a": {"config": "no.yaml"}}}, "no config"),
        ({"systems": {"a": {"config": "train_a_s.yaml", "varry": {}}}}, "did you mean 'vary'"),
        ({"systems": {"a": {"config": "train_a_s.yaml", "vary": {"seed": 1}}}}, "list of values"),
    ],
)
def test_each_fault_is_one_line(tmp_path, over, words):
    with pytest.raises(UserError) as caught:
        read_grid(write(tmp_path, GRID | over))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no grid"):
        read_grid(tmp_path / "conf/grid_none.yaml")


def test_parts_of_a_grid_are_apart_and_whole():
    class Chained(NamedTuple):
        tag: str
        before: "Chained | None" = None

    cells = [Chained(f"plain{n}") for n in range(9)]
    firsts = [Chained(f"first{n}") for n in range(4)]
    then = [Chained(f"then{n}", first) for n, first in enumerate(firsts)]
    cells += [*firsts, *then, Chained("last", then[1])]
    parts = [part_of(cells, Part(k, 4)) for k in range(1, 5)]
    assert sorted(itertools.chain(*parts)) == sorted(cells)
    assert part_of(cells, None) == cells
    for found in parts:
        assert all(cell.before in found for cell in found if cell.before is not None)
    assert max(map(len, parts)) <= 6
    assert part("2/4") == Part(2, 4)
    for wrong in ("0/4", "5/4", "4", "a/b", "1/"):
        with pytest.raises(argparse.ArgumentTypeError, match="K/N"):
            part(wrong)


def test_unknown_folds_are_named(tmp_path, monkeypatch):
    path = write(tmp_path, GRID | {"split": "voise"})
    (tmp_path / "data/folds").mkdir(parents=True)
    (tmp_path / "data/folds/voice").write_text("voice-a\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean 'voice'"):
        words = {"espnet": [], "part": None, "dry_run": True, "keep_models": False}
        words |= {"ngpu": 0, "nj": None}
        verb.run(argparse.Namespace(grid=path, **words))


def utterances(*speakers):
    return [Utterance(f"{s}-{n}", s, "", "x.flac", 1.0, "joy") for s in speakers for n in "12"]


def test_folds_are_written_apart(tmp_path):
    parts = {"train": utterances("a"), "dev": utterances("b"), "test": utterances("c")}
    turned = {"train": utterances("b"), "dev": utterances("c"), "test": utterances("a")}
    write_folds(tmp_path, "voice", {"one": parts, "two": turned})
    assert read_folds(tmp_path, "voice") == ["voice-one", "voice-two"]
    assert [u.label for u in read_data_dir(tmp_path / "voice-two/test")] == ["joy", "joy"]
    assert not (tmp_path / "voice-two/test/text").exists()
    write_folds(tmp_path, "voice", {"one": parts})
    assert not (tmp_path / "voice-two").exists()
    with pytest.raises(UserError, match="a is in train and test"):
        write_folds(tmp_path, "voice", {"x": {**parts, "test": utterances("a")}})
    with pytest.raises(UserError, match="tested in another fold"):
        write_folds(tmp_path, "voice", {"x": parts, "y": parts})


def cell(system, fold, seed, hypotheses):
    references = ["joy", "sad", "joy", "sad"]
    from espnet_ext.score.classification import metrics

    return {
        "system": system,
        "fold": fold,
        "seed": seed,
        "references": references,
        "hypotheses": hypotheses,
        "speakers": [f"{fold}1", f"{fold}1", f"{fold}2", f"{fold}2"],
        "parameters": 10,
        "training_parameters": 20,
        "macs_per_second": 5,
        "max_difference": 1e-7,
        "training_seconds": 2.0,
        "epochs": 3,
        **metrics(references, hypotheses, ["joy", "sad"]),
    }


def checked(found) -> Grid:
    """A summary with an origin, which must fit its schema."""
    origin = {"schema_version": SCHEMA_VERSION, "dataset": "d", "task": "t", "commit": "c"}
    origin |= {"versions": {"python": "3"}, "machine": {"cpu": "x"}, "command": "espnet-ext grid"}
    return parse(Grid, origin | found, "grid")


def test_the_summary_of_a_grid(tmp_path):
    grid = read_grid(write(tmp_path, GRID))
    right, always = ["joy", "sad", "joy", "sad"], ["joy"] * 4
    cells = [cell("light", f, s, always) for f in "xy" for s in (1, 2)]
    cells += [cell("better", f, s, right if f == "x" else always) for f in "xy" for s in (1, 2)]
    record = checked(summary(grid, cells, ["joy", "sad"]))
    light, better = record.systems
    alone = 0.5 * 2 / 3  # F1 of joy is 2/3, of sad 0
    assert record.majority == pytest.approx(alone)
    assert light.scores["weighted_f1"].value == pytest.approx(alone)
    assert better.scores["weighted_f1"].value == pytest.approx((1 + alone) / 2)
    assert better.scores["weighted_f1"].by_unit == pytest.approx({"x": 1.0, "y": alone})
    assert better.compared("weighted_f1", "light").difference == pytest.approx((1 - alone) / 2)
    # pooled: joy 4 of 4 named 6 times, sad 2 of 4 named twice
    pooled = better.scores["pooled_weighted_f1"].value
    assert pooled == pytest.approx((2 * 4 / 10 + 2 * 2 / 6) / 2)
    assert better.confusion == [[8, 0], [4, 4]]
    header, rows = scores_table(record)
    assert rows[0][header.index("F1 = 0")] == "sad"
    assert rows[1][header.index("F1 = 0")] == "none"
    assert rows[0][header.index("against the baseline")] == "baseline"
    assert all(path.is_file() for path in plot_grid(record, tmp_path / "images"))
    broken = as_json(record)
    del broken["systems"][0]["scores"]["pooled_weighted_f1"]["value"]
    with pytest.raises(UserError, match="pooled"):
        parse(Grid, broken, "grid")


def test_the_unit_can_be_the_speaker(tmp_path):
    right, wrong = ["joy", "sad", "joy", "sad"], ["joy", "sad", "sad", "joy"]
    cells = [cell("light", f, s, wrong) for f in "xy" for s in (1, 2)]
    cells += [cell("better", f, s, right) for f in "xy" for s in (1, 2)]
    grid = read_grid(write(tmp_path, GRID | {"unit": "speaker"}))
    record = checked(summary(grid, cells, ["joy", "sad"]))
    light, better = record.systems
    assert (record.folds, record.units, record.decisions) == (2, 4, 8)
    by_unit = {"x1": 1.0, "x2": 0.0, "y1": 1.0, "y2": 0.0}
    assert light.scores["weighted_f1"].by_unit == by_unit
    assert set(better.scores["weighted_f1"].by_unit.values()) == {1.0}
    found = better.compared("weighted_f1", "light")
    assert found.difference == 0.5
    assert found.p == 0.5  # of 16 ways to flip the signs 8 give a mean as large
    # Every decision is pooled once, as without the unit.
    folds = checked(summary(read_grid(write(tmp_path, GRID)), cells, ["joy", "sad"]))
    pooled = [
        [system.scores["pooled_weighted_f1"] for system in one.systems] for one in (folds, record)
    ]
    assert pooled[0] == pooled[1]
    # Where a speaker is in several folds, the decisions of all of them count together.
    for one in cells:
        one["speakers"] = ["1", "1", "2", "2"]
    record = checked(summary(grid, cells, ["joy", "sad"]))
    assert record.systems[0].scores["weighted_f1"].by_unit == {"1": 1.0, "2": 0.0}
    with pytest.raises(UserError, match="unknown unit 'voice'"):
        read_grid(write(tmp_path, GRID | {"unit": "voice"}))


def test_systems_of_one_name_are_refused(tmp_path):
    twice = {"a_seed-1": {"config": "train_a_s.yaml"}}
    twice["a"] = {"config": "train_a_s.yaml", "vary": {"seed": [1]}}
    with pytest.raises(UserError, match="one name"):
        read_grid(write(tmp_path, GRID | {"systems": twice, "baseline": None}))
    assert System("x", tmp_path).changes == {}


CHAINED = {
    "seeds": [1, 2],
    "systems": {
        "share": {"config": "train_a_s.yaml"},
        "again": {"config": "train_a_s.yaml", "after": "share", "than": ["share"]},
        "residual": {
            "config": "train_a_s.yaml",
            "set": {"encoder_conf.hrf.ratio": 2},
            "after": "share",
            "than": ["again", "share"],
            "seeds": [2],
        },
    },
}


def test_a_system_starts_from_anothers_model_of_its_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read_grid(write(tmp_path, CHAINED))
    cells = {(cell.system.name, cell.seed): cell for cell in found.cells([""])}
    assert sorted(cells) == [
        ("again", 1),
        ("again", 2),
        ("residual", 2),
        ("share", 1),
        ("share", 2),
    ]
    text = yaml.safe_load(cells["residual", 2].config_text(tmp_path / "exp"))
    assert text["init_param"] == ["exp/grid_some/share/fixed_s2/valid.loss.ave.pth"]
    assert "init_param" not in yaml.safe_load(cells["share", 1].config_text(tmp_path / "exp"))
    found_waves = [{c.system.name for c in wave} for wave in waves(list(cells.values()))]
    assert found_waves == [{"share"}, {"again", "residual"}]
    # Nothing to compare it with yet: not done, and no fault.
    assert not GridRun(found).is_done(cells["again", 1])


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"after": "later"}, "after must name a system above it: 'later'"),
        ({"than": ["shared"]}, "than: 'shared'; did you mean 'share'?"),
        ({"than": ["other"]}, "than: 'other'"),
        ({"than": "share"}, "than must be a list of systems, not 'share'"),
        ({"seeds": [3]}, r"seeds must be some of \[1, 2\], not \[3\]"),
        ({"after": "few"}, "few is not trained with all of its seeds"),
        ({"than": ["few"], "seeds": [2]}, "than: few has no seed in common with it"),
    ],
)
def test_a_chain_that_makes_no_sense_is_one_line(tmp_path, system, message):
    systems = {
        "share": {"config": "train_a_s.yaml"},
        "few": {"config": "train_a_s.yaml", "seeds": [1]},
        "other": {"config": "train_a_s.yaml"} | system,
        "later": {"config": "train_a_s.yaml"},
    }
    with pytest.raises(UserError, match=message):
        read_grid(write(tmp_path, {"seeds": [1, 2], "systems": systems}))


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("cls", {}, "than and seeds of a system are for recognisers"),
        ("asr", {"split": "voice"}, "split and unit are for classifiers"),
        ("asr", {"unit": "speaker"}, "split and unit are for classifiers"),
    ],
)
def test_keys_of_another_task_are_refused(tmp_path, task, change, words):
    path = write(tmp_path, CHAINED | change)
    recipe = {"task": task, "classes": 3} if task == "cls" else {}
    (tmp_path / "conf/train_a_s.yaml").write_text(yaml.safe_dump(BASE | {"recipe": recipe}))
    arguments = argparse.Namespace(grid=str(path), part=None, ngpu=0, nj=None)
    with pytest.raises(UserError, match=words):
        verb.run(arguments)


def text_cell(system, seed, hypotheses):
    """What a training of a recogniser leaves."""
    return {
        "system": system,
        "seed": seed,
        "references": ["the cat sat", "a dog ran home", "it was late", "he left us"],
        "hypotheses": hypotheses,
        "parameters": 10,
        "training_parameters": 12,
        "macs_per_second": 5,
        "max_difference": 1e-7,
        "training_seconds": 2.0,
        "epochs": 3,
    }


def test_words_of_a_grid_by_hand(tmp_path):
    grid = read_grid(write(tmp_path, CHAINED))
    right = text_cell("", 0, [])["references"]
    wrong = ["the cat", "a dog ran", "it was", "he left"]  # a word less each
    cells = [text_cell("share", seed, wrong) for seed in (1, 2)]
    cells += [text_cell("again", 1, wrong), text_cell("again", 2, right)]
    cells += [text_cell("residual", 2, right)]
    record = checked(summary(grid, cells))
    share, again, residual = record.systems
    assert share.scores["wer"].value == pytest.approx(4 / 13)
    assert again.scores["wer"].by_seed == pytest.approx({"1": 4 / 13, "2": 0})
    assert again.compared("wer", "share").difference == pytest.approx(-2 / 13)
    pair = residual.compared("wer", "share")
    assert (list(pair.by_seed), pair.difference) == (["2"], pytest.approx(-4 / 13))
    assert pair.verdict() == "better"
    assert residual.compared("wer", "again").verdict() == "equal"
    assert again.compared("wer", "share").verdict() == "inconclusive"
    header, rows = comparisons(record)
    assert [row[:3] for row in rows] == [
        ["again", "share", "2"],
        ["residual", "again", "1"],
        ["residual", "share", "1"],
    ]
    assert rows[2][header.index("WER difference")].startswith("-30.8 (")
    assert {path.name for path in plot_grid(record, tmp_path)} == {"some.png"}
