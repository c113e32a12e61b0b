"""A published Whisper for the runtimes of others computes what transformers computes."""

import struct
import sys

import numpy as np
import pytest
import torch

from espnet_ext.errors import UserError
from tests.fixtures import foundation
from tests.fixtures.miniature import ROOT

RATE = 16000


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder and model of a random English Whisper with features."""
    from transformers import WhisperFeatureExtractor

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    model = foundation.make(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture
def peers(monkeypatch):
    """The two modules of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import device_systems
    import whisper_peers

    yield whisper_peers, device_systems
    for name in ("device_systems", "whisper_peers"):
        sys.modules.pop(name, None)


def wave(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def test_greedy_search_with_the_graphs_gives_the_texts_of_transformers(published, peers, tmp_path):
    folder, model = published
    made, systems = peers
    made.write_graphs(folder, tmp_path / "float", int8=False)
    found = made.Published(folder)
    decode = systems.onnxruntime()(str(tmp_path / "float"))
    lengths = []
    for seed in range(3):
        samples = wave(1 + seed, seed)
        mel = found.features(samples, sampling_rate=RATE, return_tensors="pt").input_features
        ids = [found.start, found.no_times]
        while len(ids) < foundation.SIZES["max_target_positions"]:
            with torch.no_grad():
                scores = model(mel, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            best = int(scores[: found.end + 1].argmax())
            if best == found.end:
                break
            ids.append(best)
        wanted = b"".join(found.texts[n] for n in ids[2:]).decode("utf-8", "replace")
        assert decode(samples) == systems.plain(wanted)
        lengths.append(len(ids))
    assert max(lengths) > 10


def test_sherpa_runs_the_graphs_in_8_bits(published, peers, tmp_path):
    folder, _ = published
    made, systems = peers
    for name, int8 in (("float", False), ("int8", True)):
        made.write_graphs(folder, tmp_path / name, int8)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).glob("*.onnx"))
        for name in ("float", "int8")
    ]
    assert sizes[1] < sizes[0]
    decode = systems.sherpa_whisper()(str(tmp_path / "int8"))
    assert isinstance(decode(wave(2)), str)


def test_ggml_holds_the_matrices_in_8_bits(published, peers, tmp_path):
    folder, model = published
    made, _ = peers
    made.write_ggml(folder, tmp_path / "ggml.bin")
    tensors = read_ggml((tmp_path / "ggml.bin").read_bytes())
    state = model.model.state_dict()
    assert len(tensors) == len(state)
    weight = state["decoder.layers.1.encoder_attn.k_proj.weight"].numpy()
    stored = tensors["decoder.blocks.1.cross_attn.key.weight"]
    step = np.abs(weight.reshape(-1, 32)).max(1) / 127
    error = np.abs(stored - weight).reshape(-1, 32).max(1)
    assert (error <= 0.51 * step + np.abs(weight).max() * 2**-11).all()
    for ours, theirs in (("ln_post", "layer_norm"), ("positional_embedding", "embed_positions")):
        name = f"encoder.{ours}" + (".weight" if ours == "ln_post" else "")
        assert np.array_equal(tensors[name], state[f"encoder.{theirs}.weight"].numpy())
    assert tensors["encoder.conv1.bias"].shape == (32, 1)


def read_ggml(data):
    """The tensors of a file, read as whisper.cpp reads it."""
    head = struct.unpack_from("12i", data)
    assert head[0] == 0x67676D6C and head[11] == 2007
    at, (bins, frequencies) = 56, struct.unpack_from("2i", data, 48)
    at += 4 * bins * frequencies
    (count,) = struct.unpack_from("i", data, at)
    at += 4
    for _ in range(count):
        at += 4 + struct.unpack_from("i", data, at)[0]
    tensors = {}
    while at < len(data):
        dims, length, kind = struct.unpack_from("3i", data, at)
        shape = struct.unpack_from(f"{dims}i", data, at + 12)[::-1]
        at += 12 + 4 * dims
        name, at = data[at : at + length].decode(), at + length
        block = np.dtype([("scale", "<f2"), ("ints", "i1", 32)])
        stored = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 8: block}[kind]
        size = int(np.prod(shape)) // (32 if kind == 8 else 1)
        values = np.frombuffer(data, stored, size, at)
        at += values.nbytes
        if kind == 8:
            values = values["ints"] * values["scale"].astype(np.float32)[:, None]
        tensors[name] = values.reshape(shape)
    return tensors


def test_a_model_of_several_languages_is_refused(peers, tmp_path):
    from transformers import WhisperFeatureExtractor

    foundation.make(tmp_path, multilingual=True)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="knows several languages"):
        peers[0].Published(tmp_path)
