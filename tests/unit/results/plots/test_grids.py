"""What the pictures of grids name."""

from pathlib import Path

import pytest

from espnet_ext.results.plots.grids import plot_grid
from espnet_ext.results.store import read_results

RESULTS = Path(__file__).resolve().parents[4] / "results"


@pytest.fixture(scope="module")
def grid():
    """A committed grid whose best system is not its baseline, with a sweep."""
    return read_results(RESULTS).grids["hedgewars_ser1/speechformer"]


def test_confusions_are_those_of_the_baseline_and_the_best(grid, tmp_path):
    systems, curve, confusion = (path.read_text() for path in plot_grid(grid, tmp_path, "svg"))
    assert ">baseline: speechformer_s<" in confusion and ">best: hrf_at_sites-cls<" in confusion
    assert confusion.count("true class<") == 3  # two panels and the colours' axis
    assert ">ratio of hrf<" in curve and ">weighted F1 (95 % interval)<" in curve
    assert ">hrf_ratio-2 (0.15 M)<" in systems and ">baseline speechformer_s: 0.244<" in systems


def test_a_baseline_that_is_the_best_is_drawn_once(grid, tmp_path):
    alone = grid.model_copy(update={"systems": grid.systems[:1]})
    systems, confusion = (path.read_text() for path in plot_grid(alone, tmp_path, "svg"))
    assert ">baseline and best: speechformer_s<" in confusion
    without = grid.systems[0].model_copy(
        update={
            "parameters": 3900,
            "scores": {
                name: score.model_copy(update={"interval": None})
                for name, score in grid.systems[0].scores.items()
            },
        }
    )
    tuned = grid.model_copy(update={"systems": [without], "baseline": None})
    systems, confusion = (path.read_text() for path in plot_grid(tuned, tmp_path, "svg"))
    assert ">best: speechformer_s<" in confusion
    assert ">weighted F1<" in systems and ">speechformer_s (3.9 k)<" in systems
