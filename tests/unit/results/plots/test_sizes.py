"""The plot of errors against sizes."""

from espnet_ext.results.benchmarks import Benchmark
from espnet_ext.results.peers import Peer, find_peers
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


def test_published_models_are_drawn_with_their_recipe(result, tmp_path):
    systems = [
        {"system": "onnx:exp/onnx", "published": False, "bytes": 9, "wer": 1.0, "interval": [0, 2]},
        {"system": "other:a/tiny", "published": True, "missing": "other", "bytes": 9},
        {"system": "faster:a/tiny", "published": True, "bytes": 4_000_000}
        | {"wer": 12.5, "interval": [10.0, 15.5]},
    ]
    measured = {"recipe": "toy_asr1", "set": "test", "utterances": 7, "systems": systems}
    record = Benchmark.model_construct(measured=measured)
    older = Benchmark.model_construct(measured={"systems": systems})
    (peer,) = find_peers({"new": record, "old": older}, "toy_asr1")
    assert peer == Peer("faster, tiny", "test", 7, 4_000_000, 12.5, (10.0, 15.5))
    assert find_peers({"new": record}, "toy_asr2") == []
    assert plot_sizes({"runs": [("a label", read(result))]}, tmp_path / "with.svg", [peer])
    drawn = (tmp_path / "with.svg").read_text()
    assert "faster, tiny" in drawn and "published models, 7 utterances" in drawn
