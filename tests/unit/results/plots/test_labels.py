"""Names of points hide neither each other nor what is drawn."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text

from espnet_ext.results.pages.families import find_families, size_series
from espnet_ext.results.plots import sizes
from espnet_ext.results.plots.figures import new_figure
from espnet_ext.results.plots.labels import label_points
from espnet_ext.results.store import read_results

RESULTS = Path(__file__).resolve().parents[4] / "results"


def boxes(axis):
    """Where the renderer puts each name, without the line to its point."""
    axis.figure.draw_without_rendering()
    return [(text.get_text(), Text.get_window_extent(text)) for text in axis.texts]


def overlapping(axis):
    """Pairs of names, and names over the bars of intervals."""
    names = boxes(axis)
    found = [(a, b) for (a, x), (b, y) in combinations(names, 2) if x.overlaps(y)]
    bars = [axis.transData.transform(s) for c in axis.collections for s in c.get_segments()]
    for name, box in names:
        for (x, low), (_, high) in bars:
            if box.x0 < x < box.x1 and low < box.y1 and box.y0 < high:
                found.append((name, "bar"))
    return found


def crowd(axis, count):
    """Points of which each touches the next, with their names."""
    points = [(1 + 0.01 * n, 50 + 0.3 * n, f"a_name_as_long_as_they_are_{n}") for n in range(count)]
    axis.errorbar(*zip(*[point[:2] for point in points], strict=True), yerr=2.0, fmt="o")
    axis.set(xlim=(0.5, 2.0), ylim=(0, 100))
    axis.figure.draw_without_rendering()
    return points


def test_names_of_a_crowd_stand_apart():
    _, (axis,) = new_figure(1, width=7.5, height=4.2)
    points = crowd(axis, 16)
    label_points(axis, points)
    assert len(axis.texts) == 16
    assert overlapping(axis) == []
    inside = axis.get_window_extent()
    for _, box in boxes(axis):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_a_name_beside_its_point_has_no_line():
    _, (axis,) = new_figure(1, width=7.5, height=4.2)
    label_points(axis, crowd(axis, 1))
    assert axis.texts[0].arrow_patch is None
    label_points(axis, [(1.0, 50.0, ""), (1.0, 50.0, "far" * 40)])  # fits nowhere
    assert len(axis.texts) == 2


@pytest.fixture(scope="module")
def recipes():
    return read_results(RESULTS).recipes.values()


def test_no_names_overlap_in_this_repositorys_plots(recipes, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(sizes, "save_figure", lambda figure, path: drawn.append(figure))
    for results in recipes:
        runs = list(results.runs.values())
        if runs:
            sizes.plot_sizes(size_series(runs), tmp_path / "runs.svg")
        for family in find_families(runs):
            sizes.plot_sizes(family.series(), tmp_path / family.plot)
    assert len(drawn) > 5
    assert [found for figure in drawn for axis in figure.axes for found in overlapping(axis)] == []
