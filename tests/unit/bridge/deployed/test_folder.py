"""Deployed folders and family files that someone changed: one line, before anything is built."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from espnet_ext.bridge.checkpoint import load_model
from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.family import load, write_family_models
from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.training.start_model import refuse_other_start
from espnet_ext.config.pretrained import Start
from espnet_ext.config.training import load_config
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.formats.family import FAMILY
from espnet_ext.formats.packed import file_content, read_content
from tests.fixtures import families

FILES = "config.yaml", "feats_stats.npz", "meta.yaml", "model.pth", "tokens.txt"
SOURCE = SpeechInput(families.RATE)
OPTIONS = {"depths": [3, 1], "widths": [64, 24], "bits": [32, 4], "kl_decoder": 0.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe with a model that is deployed as ``merged``, and its family file."""
    root = tmp_path_factory.mktemp("recipe")
    exp = families.make(root, **OPTIONS)
    speech = Speech([torch.from_numpy(families.wave(1.0))], SOURCE)
    config = load_config(root / "conf/train_family.yaml")
    deploy_experiment(Experiment.of(config, "merged", root), exp / "1epoch.pth", speech)
    file = exp / "deploy/family/family.safetensors"
    write_family_models(exp / "config.yaml", exp / "1epoch.pth", speech, file)
    return root


@pytest.fixture
def folder(recipe, tmp_path) -> Path:
    """A copy of the deployed folder."""
    return Path(shutil.copytree(recipe / "exp/family/deploy/merged", tmp_path / "merged"))


def decode(folder: Path) -> None:
    Decoder(folder, "ctc_greedy", {}, SOURCE)


READERS = {
    "decode": decode,
    "load": lambda folder: load_model(folder / "config.yaml", folder / "model.pth"),
    "stack": load_stack,
}


def refused(reader: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        reader(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["model.pth", "config.yaml"])
def test_a_changed_byte_is_named_by_every_reader(reader, name, folder):
    READERS[reader](folder)
    changed = bytearray((folder / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / name).write_bytes(changed)
    assert f"{folder / name} was changed: its SHA-256" in refused(READERS[reader], folder)


def test_a_changed_byte_is_named_where_a_training_starts_from_it(folder):
    changed = bytearray((folder / "model.pth").read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / "model.pth").write_bytes(changed)
    start = [Start(folder / "model.pth")]
    assert "model.pth was changed" in refused(refuse_other_start, torch.nn.Linear(1, 1), start)


def test_deploy_json_has_the_digest_of_every_file(folder):
    made = json.loads((folder / "deploy.json").read_text())
    names = {path.name for path in folder.iterdir()} - {"deploy.json"}
    assert names == made["sha256"].keys() == {*FILES}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"variant": "merged"}', "deploy.json has no SHA-256 of the folder's files; run stage 5"),
        ('{"sha256": 3}', "deploy.json has no SHA-256"),
        ("[]", "deploy.json has no SHA-256"),
        ("{", "deploy.json: not valid JSON; run stage 5 again"),
        ('{"sha256": {}}', "was changed: its SHA-256"),
    ],
)
def test_a_folder_without_digests_is_refused(reader, record, message, folder):
    (folder / "deploy.json").write_text(record)
    assert message in refused(READERS[reader], folder)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [torch.complex64, torch.int32, torch.bool])
def test_weights_of_another_kind_are_refused(reader, kind, folder):
    """Without deploy.json, so that no digest is in the way."""
    (folder / "deploy.json").unlink()
    state = torch.load(folder / "model.pth", weights_only=True)
    name = "encoder.encoders.0.feed_forward.w_1.weight"
    torch.save({**state, name: state[name].to(kind)}, folder / "model.pth")
    kind_name = str(kind).removeprefix("torch.")
    assert f"w_1.weight is {kind_name}, in the config float32" in refused(READERS[reader], folder)
    sparse = state[name].to_sparse()
    torch.save({**state, name: sparse}, folder / "model.pth")
    assert "holds no model" in refused(READERS[reader], folder)


CONFIGS = {
    "empty": b"",
    "list": b"- 1\n- 2\n",
    "word": b"word\n",
    "not UTF-8": b"encoder: \xff\n",
    "not YAML": b"a: [1,\n",
    "a key that is no word": b"1: 2\n",
    "nothing in it": b"ctc_conf: {}\n",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", CONFIGS)
def test_a_config_that_is_none_is_one_line(reader, content, folder):
    (folder / "deploy.json").unlink()
    (folder / "config.yaml").write_bytes(CONFIGS[content])
    assert str(folder) in refused(READERS[reader], folder)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_blocks", 10_000_000),
        ("num_blocks", 10**30),
        ("linear_units", 10**9),
        ("linear_units", 10**30),
        ("output_size", 10**7),
        ("attention_heads", 0),
        ("num_blocks", "many"),
        ("input_layer", ["conv2d"]),
        ("unknown", 1),
    ],
)
def test_a_config_of_another_size_is_refused_before_it_is_built(reader, key, value, folder):
    arguments = yaml.safe_load((folder / "config.yaml").read_text())
    arguments["encoder_conf"][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(arguments))
    assert "config.yaml was changed" in refused(READERS[reader], folder)
    (folder / "deploy.json").unlink()
    refused(READERS[reader], folder)


VALUES = [None, True, -1, 0, 3, 0.5, "", "x", [], [1], ["a"], {}, {"a": 1}]


@pytest.mark.parametrize("reader", READERS)
def test_any_value_of_a_config_may_be_another(reader, folder):
    (folder / "deploy.json").unlink()
    arguments = yaml.safe_load((folder / "config.yaml").read_text())
    rng = random.Random(0)
    places = [(key,) for key in arguments]
    places += [(k, i) for k, v in arguments.items() if isinstance(v, dict) for i in v]
    refused_of = 0
    for place in rng.sample(places, 40):
        changed = json.loads(json.dumps(arguments))
        inner = changed if len(place) == 1 else changed[place[0]]
        inner[place[-1]] = rng.choice(VALUES)
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
        try:
            READERS[reader](folder)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused_of += 1
    assert 0 < refused_of < 40


def test_a_family_whose_config_or_names_are_forged_is_one_line(recipe, tmp_path):
    path = tmp_path / "family.safetensors"
    shutil.copy(recipe / "exp/family/deploy/family/family.safetensors", path)
    tensors, layout = read_content(path, FAMILY)
    assert load(path).entry.member.name == "3L-64-32b"

    def forge(change: Any) -> str:
        changed = json.loads(json.dumps(layout))
        change(changed)
        path.write_bytes(file_content(dict(tensors), changed, FAMILY))
        return refused(load, path)

    def conf(**values: Any) -> Any:
        return lambda changed: changed["members"][0]["config"].update(
            encoder_conf={**layout["config"]["encoder_conf"], **values}
        )

    assert "many times as large" in forge(conf(num_blocks=10_000_000))
    assert "does not build" in forge(conf(attention_heads=0))
    assert "is of another architecture" in forge(conf(num_blocks=1))
    assert "does not build" in forge(lambda changed: changed["config"].clear())
    assert "does not build" in forge(  # it lacks the normalisation's mean
        lambda changed: changed["shapes"][0][0].__setitem__(0, "x")
    )
    assert "is of another architecture" in forge(
        lambda changed: changed["shapes"][0][-1].__setitem__(0, "x")
    )
    assert "is damaged" in forge(lambda changed: changed["members"][0]["sources"].pop())
