"""A family in one folder: weights once, members as from folders of their own, and integers."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import sherpa_onnx
import torch

import espnet_ext
from espnet_ext.bridge.bundle import Bundle, bundles
from espnet_ext.cli.main import main
from espnet_ext.errors import UserError
from espnet_ext.export import integers
from espnet_ext.export.family import WEIGHTS, chosen_members, export_family
from espnet_ext.export.folder import export
from espnet_ext.export.graph import FLOAT, INT8, UINT8, Graph
from espnet_ext.export.integers import Weight, computed
from espnet_ext.export.onnx_decoder import load_exported
from espnet_ext.export.run_onnx import Model, Stream
from espnet_ext.export.site import write_site
from espnet_ext.methods import quantise
from tests.fixtures import families, streams

RATE = families.RATE
FORMS = ("3L-64-32b", "3L-64-8b", "3L-64-4b", "1L-24-4b")
WAVES = [families.wave(seconds, seed) for seed, seconds in enumerate((1.1, 2.0))]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    """Deployed forms of a family, a family file among them."""
    return families.deployed(tmp_path_factory.mktemp("recipe"), FORMS)


@pytest.fixture(autouse=True)
def _random_models(monkeypatch):
    """Rounded activations change a text of a model of random weights now and then."""
    monkeypatch.setattr("espnet_ext.export.folder._EQUAL", 0.0)


def _operators(graph: Path, tmp_path: Path) -> Counter[str]:
    """The operators that are left when a session is made."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(graph), options)
    made = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    return Counter(node.op_type for node in made.graph.node)


@pytest.fixture(scope="module")
def folder(deployed, tmp_path_factory) -> Path:
    """All members in one folder, by the command."""
    out = tmp_path_factory.mktemp("exported") / "family"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("espnet_ext.export.folder._EQUAL", 0.0)
        _command(patch, "export", deployed, "--family", *_options(deployed, out))
    return out


def _options(deployed: Path, out: Path) -> list[object]:
    return ["--verify", deployed.parents[2] / "data/dev/u1.wav", "--out", out]


def _command(patch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    """Run the command line; return how it ended."""
    patch.setattr("sys.argv", ["espnet-ext", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_each_weight_is_there_once(deployed, folder):
    floats = Bundle.of_folder(deployed / FORMS[0]).state
    size = sum(t.numel() * 4 for t in floats.values() if t.numel() >= 256)
    # Integers follow from the float weights; only scales are added.
    assert 0.8 * size < (folder / WEIGHTS).stat().st_size < 1.15 * size
    assert set(Model(folder).settings["members"]) == set(FORMS)


@pytest.mark.parametrize(("products", "form"), [("uint8", "3L-64-4b"), ("float32", "3L-64-8b")])
def test_a_member_is_what_it_is_alone(deployed, folder, products, form, tmp_path):
    bundle = Bundle.of_folder(deployed / form)
    export(bundle, tmp_path / "alone", WAVES[:1], products=products)
    if products == "float32":
        members = {"3L-64-32b": Bundle.of_folder(deployed / "3L-64-32b"), form: bundle}
        folder = tmp_path / "family"
        export_family(members, folder, WAVES[:1], products=products)
    one, other = Model(tmp_path / "alone"), Model(folder, member=form)
    for wave in WAVES:
        np.testing.assert_array_equal(one.log_probs(wave), other.log_probs(wave))
    # What computes its integers is done when a session is made.
    wanted = _operators(tmp_path / "alone/model.onnx", tmp_path)
    assert _operators(folder / f"{form}.model.onnx", tmp_path) == wanted


def test_8_bits_hold_4_bits_in_narrower_and_fewer_layers(deployed, tmp_path):
    members = {form: Bundle.of_folder(deployed / form) for form in ("3L-64-8b", "1L-24-4b")}
    made = export_family(members, tmp_path / "family", WAVES[:1], products="int8")
    assert made.bytes == sum(p.stat().st_size for p in (tmp_path / "family").iterdir())
    weights = (tmp_path / "family" / WEIGHTS).stat().st_size
    export_family({**members, "1L-24-4b": members["3L-64-8b"]}, tmp_path / "same", WAVES[:1])
    # A bit for each twentieth weight, and scales.
    assert weights < 1.05 * (tmp_path / "same" / WEIGHTS).stat().st_size


def test_sherpa_onnx_and_the_script_run_a_member(deployed, folder):
    model, form = Model(folder, member="3L-64-4b"), "3L-64-4b"
    recogniser = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(folder / f"{form}.model.onnx"), tokens=str(folder / "tokens.txt"), feature_dim=20
    )
    stream = recogniser.create_stream()
    stream.accept_waveform(RATE, WAVES[1])
    recogniser.decode_stream(stream)
    ours = [model.symbols[token] for token in model.tokens(WAVES[1])[0]]
    theirs = [token.strip() for token in stream.result.tokens]
    assert ours and theirs == [token.replace("\u2581", "").strip() for token in ours]
    speech = deployed.parents[2] / "data/dev/u1.wav"
    script = [sys.executable, folder / "transcribe.py"]
    given = ["--member", form, speech]
    found = subprocess.run([*script, *given], capture_output=True, text=True, check=True).stdout
    assert found.strip() == model.text(model.tokens(families.wave(1.7, 1))[0])
    wrong = subprocess.run([*script, "--member", "x", speech], capture_output=True, text=True)
    assert wrong.returncode and wrong.stderr == "no member 'x': model.json lists them\n"


def test_transcribe_chooses_a_member(deployed, folder, monkeypatch, capsys):
    speech = deployed.parents[2] / "data/dev/u1.wav"
    sizes = {form: one["bytes"] for form, one in Model(folder).settings["members"].items()}
    least = min(sizes, key=lambda form: sizes[form])
    for options, form in (
        (["--variant", "1L-24-4b"], "1L-24-4b"),
        (["--max-bytes", sizes[least]], least),
        ([], next(iter(sizes))),
    ):
        assert _command(monkeypatch, "transcribe", folder, speech, *options) == 0
        model = Model(folder, member=form)
        tokens = model.tokens(families.wave(1.7, 1))[0]
        assert capsys.readouterr().out.strip() == model.text(tokens)
    assert espnet_ext.load(folder, max_bytes=sizes[least]).decoder.model.settings["bytes"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["3L-64-8"], "no member '3L-64-8'"),
        (["3L-64-8b"], "a family has several members; leave out --family"),
        (["3L-64-8b", "3L-64-4b", "--bits", "8"], "is packed and keeps its bits"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    deployed, more, line, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "family"
    words = ["export", deployed, *_options(deployed, out), "--family", *more]
    assert _command(monkeypatch, *words)
    said = capsys.readouterr().err
    assert line in said and len(said.splitlines()) == 1 and not out.exists()


def test_a_folder_without_what_is_asked_or_changed_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no member '3L-64-2b'"):
        load_exported(folder, member="3L-64-2b")
    with pytest.raises(UserError, match="no member of 10 bytes; the smallest has"):
        espnet_ext.load(folder, max_bytes=10)
    changed = shutil.copytree(folder, tmp_path / "changed")
    with (changed / WEIGHTS).open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02")
    with pytest.raises(UserError, match=re.escape(WEIGHTS)):
        espnet_ext.load(changed)
    with pytest.raises(UserError, match="is a family in one folder"):
        write_site([folder], tmp_path / "site")


def test_a_member_that_would_change_is_refused(deployed, tmp_path, monkeypatch):
    members = {form: Bundle.of_folder(deployed / form) for form in FORMS[1:3]}
    monkeypatch.setattr(integers, "_clipped", lambda y, limit, coarse: coarse.rows)
    with pytest.raises(RuntimeError, match="changed by sharing"):
        export_family(members, tmp_path / "family", WAVES)
    assert not (tmp_path / "family").exists()


def test_a_streaming_transducer_and_what_was_rounded_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("espnet_ext.bridge.variants._SMALL", 30)
    streams.make(tmp_path, forms=("merged", "whole+8b", "whole+4b"))
    found = chosen_members(bundles(tmp_path / "exp/tiny/deploy"), ["merged", "whole+4b"], tmp_path)
    waves = [streams.wave(1.7, 1)]
    export_family(found, tmp_path / "family", waves, products="float32")
    for form, bundle in found.items():
        export(bundle, tmp_path / "alone", waves, products="float32")
        one, other = Stream(Model(tmp_path / "alone")), Stream(Model("family", member=form))
        for stream in (one, other):
            stream.accept(waves[0], last=True)
        assert one.tokens and (one.tokens, one.score) == (other.tokens, other.score)


def _quantised(weight, bits, per="channel"):
    if per == "channel":
        ints, scale = quantise.integers(weight, bits)
    else:
        ints, scale = quantise.grouped_integers(weight, bits, per)
    return ints.numpy().astype(np.int16), scale.numpy().reshape(len(weight), -1)


def _run(found, fine, coarse) -> np.ndarray:
    """The stored form that a session computes."""
    g = Graph()
    g.op("Identity", found.add_to(g, "fine", "moved"), out="out")
    stored = fine.rows + fine.zero if fine.scale is not None else fine.rows
    stored = (stored.T if fine.across else stored).reshape(fine.shape)
    kinds = {FLOAT: np.float32, UINT8: np.uint8, INT8: np.int8}
    given = {"fine": stored.astype(kinds[fine.kind]), "scale": coarse.scale}
    inputs = {"fine": (fine.kind, fine.shape), "scale": (FLOAT, coarse.scale.shape)}
    if found.moved:
        given["moved"] = np.frombuffer(found.moved, np.uint8)
        inputs["moved"] = (UINT8, [len(found.moved)])
    path = Path("graph.onnx")
    g.save(path, inputs, {"out": (coarse.kind, coarse.shape)})
    return onnxruntime.InferenceSession(str(path)).run(None, given)[0]


@pytest.mark.parametrize("per", ["channel", 16])
@pytest.mark.parametrize("source", ["float32", "8 bits", "8 bits across"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_coarse_integers_follow_from_finer_ones(bits, source, per, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(bits)
    weight = torch.randn(48, 96) * torch.rand(48, 1).exp()
    weight[5] = 0.0
    rows, scale = _quantised(weight, bits, per)
    part = rows[:40, :64], scale[:40, : scale.shape[1] * 64 // 96 or 1]
    for ints, wanted in ((rows, scale), part):
        blocks = (len(ints), ints.shape[1] // 32, 16)
        coarse = Weight(ints, wanted, "scale", UINT8, blocks, 8, in_pairs=True)
        if source == "float32":
            fine = Weight(weight.numpy(), None, "", FLOAT, weight.shape)
        else:
            eight, step = _quantised(weight, 8)
            across = source.endswith("across")
            shape = (96, 48) if across else (48, 3, 32)
            fine = Weight(eight, step, "fine_scale", UINT8, shape, 128, across=across)
        found = computed(fine, coarse)
        assert found is not None
        assert bool(found.moved) == (source != "float32")
        assert len(found.moved) < 0.1 * ints.size / 8 * (bits - 1)
        stored = _run(found, fine, coarse)
        again = np.stack([stored & 15, stored >> 4], -1).reshape(ints.shape).astype(int) - 8
        np.testing.assert_array_equal(again, ints)


def test_other_weights_are_not_taken_for_it():
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    rows, scale = _quantised(weight, 4)
    coarse = Weight(rows, scale, "scale", UINT8, (32, 2, 16), 8, in_pairs=True)
    changed = weight.clone()
    changed[7, 9] += 2 * float(scale[7, 0])
    for other in (changed, torch.randn(32, 64), weight[:16]):
        eight, step = _quantised(other, 8)
        assert computed(Weight(eight, step, "s", INT8, other.shape), coarse) is None
        assert computed(Weight(other.numpy(), None, "", FLOAT, other.shape), coarse) is None
    # With more groups than one in both, and not the same.
    grouped = Weight(*_quantised(weight, 4, 32), "scale", UINT8, (32, 2, 16), 8, in_pairs=True)
    finer = Weight(*_quantised(weight, 8, 16), "s", INT8, (32, 64))
    assert computed(finer, grouped) is None
