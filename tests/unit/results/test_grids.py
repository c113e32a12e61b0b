"""`espnet-ext grid --publish` over a finished grid: what results/ and RESULTS.md then hold."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from espnet_ext.cli import grid as verb
from espnet_ext.config.grid import read_grid
from espnet_ext.errors import StoppedError, UserError
from espnet_ext.files import write_json, write_text
from espnet_ext.results.claims.failures import failures_of_rows
from espnet_ext.results.grids import Grid, GridSystem
from espnet_ext.results.pages.grids import scores_table
from espnet_ext.results.plots.grids import sweep
from espnet_ext.score.classification import metrics
from espnet_ext.stages.grid import GridRun, cell_config
from espnet_ext.validation import read_model
from tests.fixtures.a_run import run_verb

CLASSES = ["anger", "fear", "joy"]
FOLDS = ["voice-a", "voice-b", "voice-c", "voice-d", "voice-e", "voice-f"]
GRID = {
    "split": "voice",
    "seeds": [1, 2],
    "baseline": "light",
    "systems": {
        "light": {"config": "train_a_s.yaml"},
        "hrf": {"config": "train_a_s.yaml", "vary": {"encoder_conf.hrf.ratio": [2, 4, 8]}},
    },
}
CONFIG = {
    "encoder": "hrf_conformer",
    "frontend": "kaldi_fbank",
    "recipe": {"task": "cls", "classes": 3, "features": "ark", "decode": {"classify": {}}},
}


def named(system: str, fold: str, seed: int) -> list[str]:
    """What a system says to anger, fear, joy, joy: fear never; HRF misses less than light."""
    wrong = system == "light" or (system == "hrf_ratio-2" and fold == "voice-a" and seed == 1)
    return ["anger", "joy", "anger" if wrong else "joy", "joy"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe in a repository, whose grid is done."""
    folder = tmp_path / "repository/egs/toy/ser1"
    write_text(folder / "conf/train_a_s.yaml", yaml.safe_dump(CONFIG))
    write_text(folder / "conf/grid_small.yaml", yaml.safe_dump(GRID, sort_keys=False))
    monkeypatch.chdir(folder)
    write_text("data/token_list/label/tokens.txt", "".join(f"{c}\n" for c in [*CLASSES, "<unk>"]))
    write_text("data/folds/voice", "".join(f"{fold}\n" for fold in FOLDS))
    found = read_grid(Path("conf/grid_small.yaml"))
    for cell in found.cells(FOLDS):
        references = ["anger", "fear", "joy", "joy"]
        hypotheses = named(cell.system.name, cell.fold, cell.seed)
        path = cell_config(cell).with_name("cell.json")
        write_json(
            path,
            {
                "system": cell.system.name,
                "fold": cell.fold,
                "seed": cell.seed,
                "references": references,
                "hypotheses": hypotheses,
                "parameters": 10,
                "training_parameters": 20,
                "macs_per_second": 5,
                "max_difference": 1e-7,
                "training_seconds": 2.0,
                "epochs": 3,
                "commit": "abc1234",
                "versions": {"torch": "2.14.1"},
                "machine": {"cpu": "some CPU"},
                **metrics(references, hypotheses, CLASSES),
            },
        )
        GridRun(found).stamp(cell).write([path])
    return folder


def grid(*words: str) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args(["conf/grid_small.yaml", *words]))


def test_a_published_grid_is_shown_whole(recipe, capsys):
    root = recipe.parents[2]
    write_text(
        root / "results/claims/p.yaml",
        yaml.safe_dump(
            {
                "paper": "A paper",
                "scope": "Small.",
                "claims": [
                    {
                        "claim": "HRF helps",
                        "where": "abstract",
                        "published": "yes",
                        "rule": "better",
                        "evidence": [
                            {"grid": "toy_ser1/small", "system": "hrf_ratio-8", "than": "light"}
                        ],
                    }
                ],
            }
        ),
    )
    grid("--publish")
    said = capsys.readouterr().out
    assert "48 trainings, 48 of 48 done" in said and "0.333, pooled" in said
    folder = root / "results/toy_ser1/grids"
    record = read_model(Grid, folder / "small.json", "again")
    page = (root / "results/toy_ser1/README.md").read_text()
    assert "## Grids of trainings\n\n### Grid small" in page
    assert "command: `espnet-ext grid conf/grid_small.yaml`; commit abc1234" in page
    for name in ("small", "small_curve", "small_confusion"):
        assert f"](grids/{name}.svg)" in page
        assert (folder / f"{name}.svg").read_bytes().startswith(b"<?xml")
    header, rows = scores_table(record)
    light, two, four, eight, always = (dict(zip(header, row, strict=True)) for row in rows)
    # Half of the decisions are joy: precision 1/2, recall 1, F1 2/3.
    assert [cell for cell in always.values() if cell] == ["always the commonest class", "0.333"]
    assert always["pooled weighted F1"] == "0.333"
    assert light["F1 = 0"] == eight["F1 = 0"] == "fear"
    by_class = page.split("| F1 by class")[1]
    assert [c.strip() for c in by_class.split("| hrf_ratio-8")[1].split("|")[1:4]] == [
        "1.000",
        "0.000",  # fear: a class that is never named is shown
        "0.800",
    ]
    assert light["against the baseline"] == "baseline"
    # Of four decisions joy is two, or three; a training of ratio 2 is as the light one's.
    assert record.row("light").one_class == {"1": 0.5, "2": 0.5}
    assert record.row("hrf_ratio-2").one_class == {"1": (5 * 0.75 + 0.5) / 6, "2": 0.75}
    # 4 decisions: anger 1 (F1 of light 2/3), joy 2 (1/2; 4/5 with HRF).
    small, large = (2 / 3 + 2 * 1 / 2) / 4, (1 + 2 * 4 / 5) / 4
    gain = f"{large - small:+.3f}"
    assert four["against the baseline"] == f"{gain} ({gain} to {gain}, p 0.031, better)"
    f1 = "weighted F1, mean of folds"
    assert f"({large:.3f}-{large:.3f};" in four[f1] and two[f1] != four[f1]
    claims = (root / "results/claims/p.md").read_text()
    claim = next(line for line in claims.splitlines() if line.startswith("| grid toy_ser1"))
    assert claim.rstrip(" |").endswith("| holds")
    assert f"{large:.3f} against {small:.3f} weighted F1, 6 folds" in claim
    index = (root / "RESULTS.md").read_text()
    assert "[toy_ser1]: results/toy_ser1" in index and "(results/claims/p.md)" in index
    (row,) = [line for line in index.splitlines() if line.startswith("| HRF helps")]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["1", ""]


def test_a_system_that_names_another_class_in_each_training_is_found(recipe):
    found = read_grid(Path("conf/grid_small.yaml"))
    for cell in found.cells(FOLDS):
        if cell.system.name == "hrf_ratio-8":
            path = cell_config(cell).with_name("cell.json")
            said = [CLASSES[(FOLDS.index(cell.fold) + cell.seed) % 3]] * 4
            record = json.loads(path.read_text())
            write_json(
                path, record | {"hypotheses": said} | metrics(record["references"], said, CLASSES)
            )
            GridRun(found).stamp(cell).write([path])
    grid("--publish")
    folder = recipe.parents[2] / "results/toy_ser1/grids"
    record = read_model(Grid, folder / "small.json", "again")
    names = [row.system for row in record.systems]
    assert np.ptp(np.sum(record.row("hrf_ratio-8").confusion, axis=0)) == 0  # all alike
    assert failures_of_rows(record, *names) == [
        "hrf_ratio-8 names one class in 100.0% of decisions"
    ]


def test_a_page_made_again_is_the_same_and_a_second_publication_changes_nothing(recipe):
    root = recipe.parents[2]
    grid("--publish")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and "exp" not in p.parts}
    grid("--publish")
    run_verb("--all")
    after = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and "exp" not in p.parts}
    assert after == before


def test_a_grid_without_a_commit_is_not_published(recipe):
    for path in Path("exp").rglob("cell.json"):
        path.write_text(path.read_text().replace("abc1234", "abc1234+dirty"))
    found = read_grid(Path("conf/grid_small.yaml"))
    for cell in found.cells(FOLDS):
        done = cell_config(cell).with_name("cell.json")
        GridRun(found).stamp(cell).write([done])
    with pytest.raises(UserError, match="not published: grid small was trained from"):
        grid("--publish")
    assert not (recipe.parents[2] / "results").exists()
    grid("--publish", "--allow-dirty")
    assert (recipe.parents[2] / "results/toy_ser1/grids/small.json").is_file()


def test_a_signal_that_stops_a_training_stops_the_grid(recipe, monkeypatch):
    found = read_grid(Path("conf/grid_small.yaml"))
    cells = found.cells(FOLDS)[:3]
    run, tried = GridRun(found), []

    def stop(experiment, options):
        tried.append(experiment.config.tag)
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr("espnet_ext.stages.grid.train", stop)
    assert all(run.is_done(cell) for cell in cells)  # and their configs are written
    with pytest.raises(StoppedError, match="SIGTERM"):
        run.run(cells, 1)
    assert tried == [cells[0].tag]


def test_a_sweep_is_systems_of_one_number():
    def grid(*names):
        systems = [GridSystem.model_construct(system=name) for name in names]
        return Grid.model_construct(systems=systems)

    swept = sweep(grid("light", "hrf_ratio-2", "hrf_ratio-16", "hrf_ratio-4"))
    assert list(swept) == [2, 4, 16]
    assert sweep(grid("light", "hrf_ratio-2", "hrf_ratio-4")) == {}
    assert sweep(grid("a_sites-ffn", "a_sites-qkv", "a_sites-all")) == {}


def test_a_broken_grid_file_is_named(recipe):
    grid("--publish")
    path = recipe.parents[2] / "results/toy_ser1/grids/small.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"small\.json: not valid JSON"):
        run_verb("--all")
    path.write_text('{"dataset": "toy"}')
    with pytest.raises(UserError, match=r"small\.json: missing key"):
        run_verb("--all")
