"""The plot of errors against sizes."""

from espnet_ext.results.plots.sizes import plot_sizes
from espnet_ext.results.schema import NOT_MEASURED
from tests.fixtures.a_run import read


def test_plot_is_the_same_for_the_same_results(result, tmp_path):
    def plot(name):
        return plot_sizes({"runs": [("a label", read(result))]}, tmp_path / name)

    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert all(plot(path) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "a label" in paths[0].read_text()
    result["scores"][0]["metrics"]["wer"]["value"] = 0.9
    plot(paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()
    result["bytes"] = NOT_MEASURED
    assert not plot("c.svg")
    assert not (tmp_path / "c.svg").exists()
