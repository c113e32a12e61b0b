"""The classification task: HRF at every site of the three architectures, head included."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.utils import parametrize

from espnet_ext.bridge.deployed.variants import deploy_variant
from espnet_ext.config.training import Config, Recipe, load_config
from espnet_ext.data.fbank import kaldi_fbank, log_mel
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import deploy, footprint
from espnet_ext.methods.hrf import hrf_factors

EGS = Path(__file__).resolve().parents[3] / "egs"
CONF = EGS / "hedgewars/ser1/conf"
MODELS = ("convtransformer", "conformer", "speechformer")
SITES = ("ffn", "qkv", "project", "cls", "all")


@pytest.fixture(scope="module")
def build():
    from espnet_ext.bridge.build import build_model

    return lambda config: build_model(Experiment.of(config))


def with_hrf(model: str, **hrf) -> Config:
    """The light config of a model with HRF, one block a stage to be quick."""
    config = load_config(CONF / f"train_hrf_{model}_s.yaml")
    config.espnet["encoder_conf"]["hrf"] = hrf
    config.espnet["encoder_conf"]["num_blocks"] = [1] * 4 if model == "speechformer" else 1
    return config


@pytest.mark.parametrize("site", ["cls", "all"])
def test_hrf_on_a_head_without_an_encoder(build, site):
    """Of pooled features: the factors of both layers merge into them."""
    config = load_config(CONF / "train_hrf_mlp_whisper_tiny_s.yaml")
    config.espnet["encoder_conf"]["hrf"]["sites"] = [site]
    model = build(config).eval()
    layers = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert [parametrize.is_parametrized(layer) for layer in layers] == [True, True]
    feats, lengths = torch.randn(2, 9, 3 * 384), torch.tensor([9, 5])
    wanted = logits(model, feats, lengths)
    with pytest.raises(UserError, match=r"not one stack of layers; use whole\+4b"):
        deploy_variant(model, "merged+4b")  # it has no stack of layers
    plain = deploy(model, "merged")
    assert not any(parametrize.is_parametrized(m) for m in plain.modules())
    torch.testing.assert_close(logits(plain, feats, lengths), wanted, atol=1e-5, rtol=1e-5)
    # Independently: mean and deviation, each matrix a product of its factors.
    h = torch.cat([feats[1, :5].mean(0), feats[1, :5].std(0, unbiased=False)])
    for place, layer in enumerate(layers):
        weights, biases = (layer.parametrizations[name] for name in ("weight", "bias"))
        for number, factor in enumerate(hrf_factors(weights)):
            h = factor @ h + getattr(biases, f"original{number}")
        h = h.relu() if place == 0 else h
    torch.testing.assert_close(h, wanted[1], atol=1e-4, rtol=1e-4)


def logits(model, feats, lengths):
    with torch.no_grad():
        hidden, hidden_lengths = model.encode(feats, lengths)
        return model.decoder(hidden, hidden_lengths)


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std(correction=0) * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("model", MODELS)
def test_hrf_at_every_site_merges_to_the_plain_model(build, model, site, factors):
    ratio = {"all": 2, "cls": 32}.get(site, 4)
    config = with_hrf(model, sites=[site], ratio=ratio, factors=factors)
    trained = randomise(build(config))
    head = [m for m in trained.decoder.modules() if isinstance(m, torch.nn.Linear)]
    compressed = [parametrize.is_parametrized(m) for m in head]
    assert len(head) == 2
    assert all(compressed) if site in ("cls", "all") else not any(compressed)
    assert any(map(parametrize.is_parametrized, trained.encoder.modules())) == (site != "cls")
    merged = deploy(trained)
    config.espnet["encoder_conf"].pop("hrf")
    config.espnet["encoder"] = config.espnet["encoder"].removeprefix("hrf_")
    plain = build(config)
    assert footprint(merged) == footprint(plain)
    plain.load_state_dict(merged.state_dict(), strict=True)
    feats, lengths = torch.randn(2, 131, 78), torch.tensor([131, 77])
    expected = logits(trained, feats, lengths)
    torch.testing.assert_close(logits(plain.eval(), feats, lengths), expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-2
    # Padding is not seen by the head either.
    alone = logits(trained, feats[1:, :77], lengths[1:])
    torch.testing.assert_close(alone[0], expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [2, 8, 16, 32])
def test_every_ratio_keeps_the_deployed_size(build, ratio):
    plain = build(load_config(CONF / "train_speechformer_s.yaml"))
    config = load_config(CONF / "train_hrf_speechformer_s.yaml")
    config.espnet["encoder_conf"]["hrf"]["ratio"] = ratio
    trained = build(config)
    assert footprint(trained)["total"] > footprint(plain)["total"]
    assert footprint(deploy(trained)) == footprint(plain)


def test_macs_of_the_merged_model_are_the_plain_ones():
    from espnet_ext.bridge.configs.footprint import measure

    for model in MODELS:
        plain, hrf = (
            measure(configured(f"train_{name}_s.yaml")) for name in (model, f"hrf_{model}")
        )
        assert plain["macs_per_second"] == hrf["macs_per_second"] > 0
        assert plain["parameters"] == hrf["parameters"]
        # The name of a file's tensors is in it too.
        assert plain["bytes"] == hrf["bytes"]


def configured(name: str) -> Experiment:
    return Experiment.of(load_config(CONF / name))


def test_larger_is_larger():
    from espnet_ext.bridge.configs.footprint import measure

    for model in MODELS:
        light, larger = (measure(configured(f"train_{model}_{s}.yaml")) for s in "sm")
        assert larger["parameters"]["total"] > 5 * light["parameters"]["total"]
        assert larger["macs_per_second"] > light["macs_per_second"]


def test_wrong_configs_are_named():
    from espnet_ext.bridge.configs.check import examine

    def problems(**over):
        base = load_config(CONF / "train_speechformer_s.yaml")
        section = {**base.as_dict()["recipe"], **over.pop("recipe", {})}
        recipe, wrong = Recipe.parse(section)
        conf = {**base.espnet["encoder_conf"], **over.pop("encoder_conf", {})}
        espnet = {**base.espnet, **over, "encoder_conf": conf}
        config = Config(base.path, base.tag, recipe, espnet)
        return " | ".join([*wrong, *examine(Experiment.of(config)).problems])

    assert problems() == ""
    assert "attention_heads: 8 does not divide the width 78" in problems(
        encoder_conf={"attention_heads": 8}
    )
    assert "attention_heads: 5 does not divide output_size: 16" in problems(
        encoder_conf={"attention_heads": 5, "output_size": 16}
    )
    assert "did you mean 'mlp'" in problems(decoder="mpl")
    assert "unknown task 'clss'; did you mean 'cls'" in problems(recipe={"task": "clss"})
    assert "'classify'" in problems(recipe={"decode": {"clasify": {}}})
    assert "classes must be" in problems(recipe={"classes": 1})
    assert "vote must be true or false" in problems(recipe={"vote": "yes"})
    assert "ctc_conf" in problems(ctc_conf={})


STOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "espnet_ext":
            raise ImportError("espnet_ext is not for this process")
sys.meta_path.insert(0, Blocked())
import torch
from espnet2.bin.cls_inference import Classification
loaded = Classification("config.yaml", "model.pth")
feats = torch.load("feats.pth", weights_only=True)
prediction, scores, text = loaded(feats)
torch.save([scores, text], "out.pth")
"""


def test_a_merged_conformer_with_espnets_head_classifies_in_stock_espnet(build, tmp_path):
    from espnet_ext.bridge.checkpoint import save
    from espnet_ext.bridge.deployed.folder import stock_arguments
    from espnet_ext.bridge.registry import TASKS

    config = with_hrf("conformer", sites=["all"], ratio=2)
    config.espnet.update(decoder="linear", decoder_conf={}, normalize=None)
    trained = randomise(build(config))
    parser = TASKS["cls"].get_parser()
    parser.set_defaults(**config.espnet)
    arguments = vars(parser.parse_args([]))
    arguments |= {"token_list": [*"abcdefg", "<unk>"], "input_size": 78, "frontend": None}
    merged = deploy(trained)
    save(merged.state_dict(), tmp_path / "model.pth")
    kept = {k: v for k, v in stock_arguments(arguments).items() if k != "config"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    feats = torch.randn(90, 78)
    torch.save(feats, tmp_path / "feats.pth")
    command = [sys.executable, "-P", "-c", STOCK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    scores, text = torch.load(tmp_path / "out.pth", weights_only=True)
    expected = torch.softmax(logits(trained, feats[None], torch.tensor([90])), -1)[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert text == "abcdefg"[expected.argmax()]


def test_78_features_are_26_log_mel_and_two_orders_of_kaldis_differences():
    wave = 0.1 * torch.randn(16000)
    feats = log_mel(wave, 16000, 26, 2)
    assert feats.shape == (100, 78)
    mel = kaldi_fbank(wave, 16000, 26)
    assert torch.equal(feats[:, :26], mel)

    def differences(x):
        """sum over n of n (x[t + n] - x[t - n]) / (2 sum n^2), n = 1, 2, edges repeated."""
        rows = []
        for t in range(len(x)):
            at = [x[min(max(t + n, 0), len(x) - 1)] for n in (-2, -1, 0, 1, 2)]
            rows.append((at[3] - at[1] + 2 * (at[4] - at[0])) / 10)
        return torch.stack(rows)

    first = differences(mel)
    torch.testing.assert_close(feats[:, 26:52], first, atol=1e-5, rtol=0)
    torch.testing.assert_close(feats[:, 52:], differences(first), atol=1e-5, rtol=0)


def test_the_head_refuses_layers_that_do_not_fit():
    from espnet_ext.models.cls import MLPDecoder

    with pytest.raises(UserError, match="num_layers: 0"):
        MLPDecoder(7, 16, num_layers=0)
    widths = [m.out_features for m in MLPDecoder(7, 78).layers if isinstance(m, torch.nn.Linear)]
    assert widths == [39, 19, 7]


@torch.no_grad()
def test_the_pooled_baseline_is_linear_in_mean_and_deviation(build):
    model = build(load_config(CONF / "train_pooled_s.yaml")).eval()
    randomise(model)
    feats, lengths = torch.randn(3, 20, 78), torch.tensor([20, 13, 1])
    model.normalize = None
    (layer,) = model.decoder.layers
    for row, count in enumerate(lengths.tolist()):
        part = feats[row, :count]
        pooled = torch.cat([part.mean(0), part.std(0, unbiased=False)])
        wanted = layer.weight @ pooled + layer.bias
        torch.testing.assert_close(logits(model, feats, lengths)[row], wanted, atol=1e-3, rtol=1e-3)
    assert sum(p.numel() for p in model.parameters()) == 7 * (2 * 78 + 1)


def test_pooled_features_are_normalised_by_all_that_was_seen():
    from espnet_ext.models.cls import SeenNorm

    torch.manual_seed(3)
    norm = SeenNorm(4).train()
    seen = [
        torch.randn(n, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + shift
        for n, shift in ((900, 3), (2100, -1))
    ]
    for part in seen:  # as batches of one length: each has a mean of its own
        for batch in part.split(30):
            norm(batch)
    x = torch.randn(5, 4)
    together = torch.cat(seen).double()
    wanted = (x - together.mean(0)) / together.std(0, unbiased=False)
    found = norm.eval()(x)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(norm(x[:1]), found[:1])  # whatever else is in the batch
    constant = SeenNorm(1).train()
    assert torch.isfinite(constant(torch.full((40, 1), 7.0))).all()


def test_the_head_has_the_width_and_the_dropout_of_its_inputs_that_were_asked_for():
    from espnet_ext.models.cls import MLPDecoder

    head = MLPDecoder(7, 64, num_layers=3, width=12, input_dropout=0.5, dropout=0.0)
    assert [m.out_features for m in head.layers if isinstance(m, torch.nn.Linear)] == [12, 12, 7]
    x, lengths = torch.randn(2, 9, 64), torch.tensor([9, 5])
    head.train()
    assert not torch.equal(head(x, lengths), head(x, lengths))
    head.eval()
    assert torch.equal(head(x, lengths), head(x, lengths))
