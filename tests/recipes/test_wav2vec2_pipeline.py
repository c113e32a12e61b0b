"""The wav2vec 2.0 config of LibriSpeech through its stages, on a small model and few clips."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from espnet_ext.data.kaldi_dir import read_table
from tests.fixtures import forked, miniature

SMALL = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 8],
    "conv_stride": [20, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CONFIG = {
    "include": "../../../librispeech_100/asr1/conf/train_wav2vec2_base_m.yaml",
    # What a user gives who has the model in a folder, and the sizes of this one.
    "encoder_conf": {"path": "model", "architecture": SMALL},
    "batch_bins": 16000 * 20,
    "accum_grad": 1,
    "max_epoch": 1,
    "optim_conf": {"lr": 0.001},
    "use_amp": False,
    "num_workers": 0,
    "recipe": {"average": 1},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe with data, a model in a folder and the config."""
    forked.load()
    root = tmp_path_factory.mktemp("wav2vec2")
    recipe = miniature.make_with_data(root)
    conf = "egs/librispeech_100/asr1/conf"
    shutil.copytree(miniature.ROOT / conf, root / "tree" / conf)
    from espnet_ext.encoders.pretrained.load import build_stack

    torch.manual_seed(5)
    build_stack(SMALL).save(recipe / "model")
    (recipe / "conf/train_small_s.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return recipe


def succeed(recipe, *words):
    done = forked.Command(recipe, words, recipe / "logs").wait(300)
    assert done.code == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_it_is_fine_tuned_deployed_and_decoded(recipe):
    config = "conf/train_small_s.yaml"
    for verb in ("tokens", "train", "deploy"):
        succeed(recipe, verb, config)
    # All is trained but the convolutions in front.
    before = load_file(recipe / "model/model.safetensors")
    found = torch.load(recipe / "exp/small_s/1epoch.pth", weights_only=True)
    after = {n.removeprefix("encoder.stack.model."): w for n, w in found.items() if "stack" in n}
    shared = before.keys() & after.keys()
    front = {name for name in shared if name.startswith("feature_extractor.")}
    layers = {name for name in shared if name.startswith("encoder.layers.")}
    assert front and layers
    assert all(torch.equal(before[name], after[name]) for name in front)
    weights = {name for name in layers if name.endswith("dense.weight")}
    assert weights and not any(torch.equal(before[name], after[name]) for name in weights)
    # A letter each, a blank, what is unknown and ESPnet's end of a sentence.
    letters = {
        letter for text in read_table(recipe / "data/train/text").values() for letter in text
    }
    assert len(found["ctc.ctc_lo.bias"]) == len(letters) + 3
    # What was deployed works without the model that it came from.
    (recipe / "model").rename(recipe / "moved")
    try:
        for verb in ("decode", "score"):
            succeed(recipe, verb, config, "--sets", "test")
    finally:
        (recipe / "moved").rename(recipe / "model")
    path = recipe / "exp/small_s/score/merged/ctc_greedy/test.json"
    score = json.loads(path.read_text())["score"]
    assert score["utterances"] == len(read_table(recipe / "data/test/text"))
    assert score["metrics"]["cer"]["value"] > 0


def test_a_model_of_another_size_is_refused(recipe):
    shutil.copytree(recipe / "model", recipe / "other")
    content = {**CONFIG, "encoder_conf": {"path": "other", "architecture": {"hidden_size": 768}}}
    (recipe / "conf/train_other_s.yaml").write_text(yaml.safe_dump(content))
    done = forked.Command(recipe, ("train", "conf/train_other_s.yaml"), recipe / "logs").wait(300)
    assert done.code == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "other has hidden_size 16, encoder_conf: architecture says 768" in said
    assert not (recipe / "exp/other_s/1epoch.pth").exists()
