"""ESPnet's attention decoders as graphs: torch's scores and texts, here and in sherpa-onnx."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import sherpa_onnx
import torch

import espnet_ext
from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.compare import next_scores
from espnet_ext.export.folder import export
from espnet_ext.export.runtime import run_onnx, run_search
from espnet_ext.files import PACKED
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import read_member
from tests.fixtures import families

RATE = families.RATE
WAVES = [families.wave(seconds, seed) for seed, seconds in enumerate((1.1, 2.0, 3.3))]
VARIANTS = ("merged", "3L-64-4b")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Variants of a Conformer with CTC and a Transformer decoder."""
    return families.deployed(tmp_path_factory.mktemp("recipe"), VARIANTS)


@pytest.fixture(autouse=True)
def _random_models(monkeypatch):
    """Texts of random models repeat themselves, which ESPnet's search does not end."""
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)


def talkative(folder: Path) -> Bundle:
    """A model whose text depends on what it hears."""
    bundle = Bundle.of_folder(folder)
    for name, tensor in bundle.state.items():
        if "src_attn.linear" in name and name.endswith("weight"):
            tensor.mul_(8)
        if name == "decoder.output_layer.bias":
            tensor[-1] -= 1
    return bundle


def ended(text: str) -> str:
    """A text, ended where it repeats itself."""
    kept: list[str] = []
    for token in text:
        kept.append(token)
        if repeated := run_search.loop(kept):
            return "".join(kept[:-repeated])
    return "".join(kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_find_torchs_scores_and_texts(folders, variant, tmp_path):
    folder = folders / variant
    bundle = talkative(folder) if variant == "merged" else Bundle.of_folder(folder)
    made = export(bundle, tmp_path / "onnx", WAVES, products="float32", search="attention")
    assert made.difference < 1e-4
    ours, options = espnet_ext.load(tmp_path / "onnx"), {"beam_size": 1, "ctc_weight": 0.0}
    torchs = Decoder(bundle, "ctc_att_beam", options, bundle.source)
    texts = [ended(found.text) for found in torchs.decode_waves(WAVES)]
    for wave, text in zip(WAVES, texts, strict=True):
        wanted, found = " ".join(text.split()), ours(wave, RATE).text
        # Both end a text after a token for each frame, of which one counts two more.
        assert found.startswith(wanted) and len(found) <= len(wanted) + 3
    if variant == "merged":
        assert len(set(texts)) > 1 and max(map(len, texts)) > 6
        return
    stored = read_member(folder / PACKED).values()
    assert made.rounded == {4: sum(w.ints.numel() for w in stored if isinstance(w, Quantised))}


def test_sherpa_onnx_runs_it_unchanged(folders, tmp_path):
    out = tmp_path / "onnx"
    export(talkative(folders / "merged"), out, WAVES, search="attention")
    recogniser = sherpa_onnx.OfflineRecognizer.from_moonshine(
        preprocessor=str(out / "preprocess.onnx"),
        encoder=str(out / "encode.onnx"),
        uncached_decoder=str(out / "uncached_decode.onnx"),
        cached_decoder=str(out / "cached_decode.onnx"),
        tokens=str(out / "tokens.txt"),
    )
    model = run_onnx.Model(out)
    for wave in WAVES:
        stream = recogniser.create_stream()
        stream.accept_waveform(RATE, wave)
        recogniser.decode_stream(stream)
        step, token, wanted = next_scores(model, wave), run_onnx.PROMPT, []
        frames = model.encode(wave).shape[1]  # rows, of which the runtime allows 0.144 tokens each
        while len(wanted) < int(frames * 0.144):
            token = int(step(token).argmax())
            if token == run_onnx.END:
                break
            wanted.append(token)
        assert len(wanted) > 3
        text = "".join(model.symbols[token] for token in wanted).replace("\u2581", " ").strip()
        found = stream.result.text.strip()
        assert found[: len(text) - 3] == text[: len(text) - 3] and abs(len(found) - len(text)) < 4


def test_positions_are_computed_and_not_stored(folders, tmp_path):
    """A table of 5,000 positions would be most of a small model."""
    for search, names in (("ctc", ["model"]), ("attention", ["encode", "cached_decode"])):
        bundle, out = Bundle.of_folder(folders / "merged"), tmp_path / search
        export(bundle, out, WAVES, products="float32", search=search)
        for name in names:
            graph = onnx.load(out / f"{name}.onnx").graph
            constants = [
                one.t for node in graph.node for one in node.attribute if one.HasField("t")
            ]
            assert sum(int(np.prod(one.dims)) for one in constants) < 2000


@pytest.mark.parametrize("bits", [8, 4])
def test_a_float_model_is_rounded_on_request(folders, bits, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 500)
    bundle, out = Bundle.of_folder(folders / "merged"), tmp_path / "onnx"
    made = export(bundle, out, WAVES, bits=bits, search="attention")
    assert made.rounded.keys() == {bits}
    settings = json.loads((out / "model.json").read_text())
    assert settings["kind"] == "attention" and settings["tokens_per_second"] == pytest.approx(25, 2)


def test_what_cannot_be_searched_so_is_one_line(folders, tmp_path, monkeypatch):
    bundle = Bundle.of_folder(folders / "merged")

    def refused(search: str, **arguments) -> str:
        changed = dataclasses.replace(bundle, arguments={**bundle.arguments, **arguments})
        with pytest.raises(UserError) as caught:
            export(changed, tmp_path / "onnx", WAVES, search=search)
        assert not (tmp_path / "onnx").exists()
        return str(caught.value)

    assert "has no attention decoder" in refused("attention", model_conf={"ctc_weight": 1.0})
    assert "has no CTC" in refused("ctc", model_conf={"ctc_weight": 0.0})
    assert "has no CTC" in refused("ctc", decoder="transducer")
    monkeypatch.setattr("espnet_ext.export.traced.attention.TransformerDecoder", torch.nn.LSTM)
    assert "of ESPnet's only transformer is exported" in refused("attention")
