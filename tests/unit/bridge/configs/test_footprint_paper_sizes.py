"""``espnet-ext footprint`` on the paper's system against table 1 to 3 of arXiv 2310.02489."""

import json
from pathlib import Path

import pytest

from espnet_ext.config.training import changed, load_config
from espnet_ext.errors import UserError
from tests.fixtures import forked
from tests.fixtures.examined import examine_file

CONFIGS = Path(__file__).resolve().parents[4] / "egs/fotaq/asr1/conf"
# K: (shared, with residuals of rank 16), millions; the paper rounds them to one decimal.
BY_GROUP = {3: (18.902, 21.612), 6: (9.451, 12.161), 9: (6.301, 9.010), 18: (3.150, 5.860)}
BY_RANK = {
    3: {8: 20.284, 4: 19.621, 2: 19.289, 1: 19.123},
    9: {8: 7.683, 4: 7.020, 2: 6.688, 1: 6.522},
}
CONTROLS = {"last": 22.052, "sets4": 12.601}  # the last layer unique, four sets over 18 layers


def millions(count: int) -> float:
    return round(count / 1e6, 3)


@pytest.fixture(scope="module")
def blocks():
    """Return a function: parameters of the blocks of the paper's encoder."""
    import torch

    from espnet_ext.encoders.compressed import compressed_encoder
    from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder
    from espnet_ext.methods.deploy import footprint
    from espnet_ext.methods.registry import METHODS

    espnet = load_config(CONFIGS / "paper/train_residual_stream_paper_k3.yaml").espnet
    conf = dict(espnet["encoder_conf"])
    conf.pop("residual")
    cls = compressed_encoder(StreamingTransformerEncoder, METHODS["residual"])

    def count(**options) -> float:
        model = torch.nn.Module()
        with torch.device("meta"):  # sizes only: no memory for the weights
            model.encoder = cls(80, **conf, residual=options)
        return millions(footprint(model)["encoder_blocks"])

    return count


@pytest.mark.parametrize("k", BY_GROUP)
def test_sizes_by_group(blocks, k):
    shared, residual = BY_GROUP[k]
    assert blocks(share=k, rank=0, diagonal=False) == shared
    assert blocks(share=k, rank=16) == residual


@pytest.mark.parametrize("k", BY_RANK)
def test_sizes_by_rank(blocks, k):
    assert {r: blocks(share=k, rank=r) for r in BY_RANK[k]} == BY_RANK[k]


@pytest.mark.parametrize("name", CONTROLS)
def test_sizes_of_the_controls(blocks, name):
    config = load_config(CONFIGS / f"residual/train_share_stream_xs_{name}.yaml")
    assert blocks(**config.espnet["encoder_conf"]["residual"]) == CONTROLS[name]


def test_footprint_prints_the_rank_table(tmp_path):
    path = CONFIGS / "paper/train_residual_stream_paper_k3.yaml"
    printed = footprint(path, tmp_path, "--set", "encoder_conf.residual.rank=4")
    assert millions(printed["parameters"]["encoder_blocks"]) == BY_RANK[3][4]


def test_footprint_refuses_settings_in_one_line(tmp_path):
    config = load_config(CONFIGS / "residual/train_stream_xs.yaml")
    for setting in ("encoder_conf.dropout_rate", "recipe.vocabulary=3", "include=x", "=3"):
        with pytest.raises(UserError, match="expected KEY=VALUE"):
            changed(config, [setting])
    with pytest.raises(UserError, match="not valid YAML"):
        changed(config, ["encoder=[x"])
    with pytest.raises(UserError, match="encoder_conf: expected keys and values, not 3"):
        changed(config, ["encoder_conf=3"])
    both = changed(config, ["encoder_conf.num_blocks=2", "encoder_conf.linear_units=8"])
    assert both.espnet["encoder_conf"] == {
        **config.espnet["encoder_conf"],
        "num_blocks": 2,
        "linear_units": 8,
    }


@pytest.mark.parametrize(("vocabulary", "total"), [(4002, 77.989), (11109, 83.909)])
def test_footprint_prints_the_whole_models(tmp_path, vocabulary, total):
    path = CONFIGS / "paper/train_stream_paper.yaml"
    printed = footprint(path, tmp_path, "--vocabulary", str(vocabulary))
    assert millions(printed["parameters"]["encoder_blocks"]) == 56.706
    assert millions(printed["parameters"]["total"]) == total
    assert printed["parameters"] == printed["training_parameters"]


RECIPES = ("librispeech_100/asr1", "covost2/st1", "mslt/st1")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("k", BY_GROUP)
def test_configs_of_other_recipes_have_the_papers_blocks(blocks, recipe, k):
    for kind, expected in zip(("share", "residual"), BY_GROUP[k], strict=True):
        path = CONFIGS.parents[2] / recipe / f"conf/train_{kind}_stream_paper_k{k}.yaml"
        conf = dict(load_config(path).espnet["encoder_conf"])
        assert blocks(**conf.pop("residual")) == expected
        plain = load_config(path.with_name("train_stream_paper.yaml")).espnet["encoder_conf"]
        assert conf == plain


def test_whole_models_of_other_recipes(tmp_path):
    recognition, translation = (CONFIGS.parents[2] / name / "conf" for name in RECIPES[:2])
    printed = footprint(recognition / "train_stream_paper.yaml", tmp_path)
    assert millions(printed["parameters"]["total"]) == 77.989
    printed = footprint(translation / "train_stream_paper.yaml", tmp_path, "--vocabulary", "11109")
    assert millions(printed["parameters"]["total"]) == 83.909


@pytest.mark.parametrize("recipe", ["swbd/asr1", "librispeech_100/asr1"])
def test_the_conformer_of_the_one_pass_paper(recipe):
    """ESPnet publishes 44.53 M for it; the encoder's parts by hand: layers of 256, FFN of 2,048."""
    width, inner, kernel, words = 256, 2048, 31, 2000
    norm = 2 * width
    ffn = 2 * width * inner + inner + width
    attention = 4 * (width * width + width) + width * width + 2 * width  # positions, two biases
    pointwise = width * 2 * width + 2 * width + width * width + width
    conv = pointwise + width * kernel + width + norm  # and batch norm
    layers = 12 * (2 * ffn + attention + conv + 5 * norm)
    bands = ((80 - 1) // 2 - 1) // 2
    front = 9 * width + width + 9 * width * width + width + width * bands * width + width
    attended = 4 * (width * width + width)
    decoder = 6 * (2 * attended + ffn + 3 * norm) + words * width + norm + width * words + words
    total = front + layers + norm + decoder + width * words + words
    path = CONFIGS.parents[2] / recipe / "conf/train_conformer_paper.yaml"
    found = examine_file(path)
    assert found.problems == []
    assert found.parameters == total == 44_527_008


def test_wav2vec2_base_under_ctc():
    """The library's own base model, and a layer for the letters: a blank, unknown and the end."""
    found = examine_file(
        CONFIGS.parents[2] / "librispeech_100/asr1/conf/train_wav2vec2_base_m.yaml"
    )
    assert found.problems == []
    assert millions(found.parameters) == pytest.approx(94.40, abs=0.01)


def test_footprint_prints_the_shared_model(tmp_path):
    """K = 3, R = 16; the file is within 2 % of 4 bytes a parameter."""
    printed = footprint(CONFIGS / "paper/train_residual_stream_paper_k3.yaml", tmp_path)
    assert millions(printed["parameters"]["encoder_blocks"]) == 21.612
    wanted = 4 * printed["parameters"]["total"]
    assert wanted < printed["bytes"] < 1.02 * wanted


def footprint(config: Path, folder: Path, *words: str) -> dict:
    forked.load()
    command = ("footprint", str(config), "--json", *words)
    done = forked.Command(folder, command, folder / "logs").wait()
    assert done.code == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
