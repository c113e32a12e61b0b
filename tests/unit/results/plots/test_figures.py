"""Axes carry plain numbers."""

import pytest

from espnet_ext.results.plots.figures import new_figure, plain_log


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1.3, 290), ["1", "2", "5", "10", "20", "50", "100", "200"]),
        ((15.6, 151), ["15", "20", "30", "50", "70", "100", "150"]),
        ((0.004, 2_000_000), ["0.005", "1,000,000"]),
    ],
)
@pytest.mark.parametrize("which", ["x", "y"])
def test_a_logarithmic_axis_carries_plain_numbers(which, values, ticks):
    figure, (axis,) = new_figure(1)
    plain_log(axis, which, values)
    figure.draw_without_rendering()
    drawn = getattr(axis, f"get_{which}ticklabels")()
    texts = [text.get_text() for text in drawn]
    assert set(ticks) <= set(texts) and not any("e" in text or "^" in text for text in texts)
    assert getattr(axis, f"get_{which}ticklabels")(minor=True) == []


def test_close_values_need_no_logarithm_and_no_offset():
    figure, (axis,) = new_figure(1)
    axis.plot([151.1, 151.100002], [0, 1])
    plain_log(axis, "x", [151.1, 151.100002])
    figure.draw_without_rendering()
    assert axis.get_xscale() == "linear" and axis.xaxis.get_offset_text().get_text() == ""
