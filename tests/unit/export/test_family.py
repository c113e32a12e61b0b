"""A family in one folder: weights once, members as from folders of their own, and integers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import sherpa_onnx
import torch
from onnx import helper, numpy_helper

import espnet_ext
from espnet_ext.bridge.deployed.bundle import Bundle, bundles
from espnet_ext.cli.main import main
from espnet_ext.errors import UserError
from espnet_ext.export.family import chosen_members, export_family
from espnet_ext.export.folder import export
from espnet_ext.export.graphs import integers
from espnet_ext.export.graphs.graph import FLOAT
from espnet_ext.export.graphs.integers import Weight, computed
from espnet_ext.export.graphs.products import INT4, INT8, UINT8, in_pairs
from espnet_ext.export.graphs.weight_file import WeightFile
from espnet_ext.export.runtime.decoder import load_exported
from espnet_ext.export.runtime.family_weights import COMPUTED, WEIGHTS, assembled
from espnet_ext.export.runtime.run_onnx import Model, Stream
from espnet_ext.methods import quantise
from tests.fixtures import families, streams

RATE = families.RATE
VARIANTS = ("3L-64-32b", "3L-64-8b", "3L-64-4b", "1L-24-4b")
WAVES = [families.wave(seconds, seed) for seed, seconds in enumerate((1.1, 2.0))]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    """Variants of a family."""
    return families.deployed(tmp_path_factory.mktemp("recipe"), VARIANTS)


@pytest.fixture(autouse=True)
def _random_models(monkeypatch):
    """Rounded activations change a text of a model of random weights now and then."""
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)


@pytest.fixture(scope="module")
def folder(deployed, tmp_path_factory) -> Path:
    """All members in one folder, by the command."""
    out = tmp_path_factory.mktemp("exported") / "family"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)
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
    floats = Bundle.of_folder(deployed / VARIANTS[0]).state
    size = sum(t.numel() * 4 for t in floats.values() if t.numel() >= 256)
    # Integers follow from the float weights; only scales are added.
    assert 0.8 * size < (folder / WEIGHTS).stat().st_size < 1.15 * size
    assert set(Model(folder).settings["members"]) == set(VARIANTS)


@pytest.mark.parametrize(("products", "variant"), [("uint8", "3L-64-4b"), ("float32", "3L-64-8b")])
def test_a_member_is_what_it_is_alone(deployed, folder, products, variant, tmp_path):
    bundle = Bundle.of_folder(deployed / variant)
    export(bundle, tmp_path / "alone", WAVES[:1], products=products)
    if products == "float32":
        members = {"3L-64-32b": Bundle.of_folder(deployed / "3L-64-32b"), variant: bundle}
        folder = tmp_path / "family"
        export_family(members, folder, WAVES[:1], products=products)
    one, other = Model(tmp_path / "alone"), Model(folder, member=variant)
    for wave in WAVES:
        np.testing.assert_array_equal(one.log_probs(wave), other.log_probs(wave))


def test_8_bits_hold_4_bits_in_narrower_and_fewer_layers(deployed, tmp_path):
    members = {name: Bundle.of_folder(deployed / name) for name in ("3L-64-8b", "1L-24-4b")}
    made = export_family(members, tmp_path / "family", WAVES[:1], products="int8")
    assert made.bytes == sum(p.stat().st_size for p in (tmp_path / "family").iterdir())
    weights = (tmp_path / "family" / WEIGHTS).stat().st_size
    export(members["3L-64-8b"], tmp_path / "alone", WAVES[:1], products="int8")
    stored = onnx.load(tmp_path / "alone/model.onnx").graph.initializer
    # A bit for each twentieth weight, and scales.
    assert weights < 1.05 * sum(len(one.raw_data) for one in stored)


def test_sherpa_onnx_and_the_script_run_a_member(deployed, folder, tmp_path):
    out, variant = shutil.copytree(folder, tmp_path / "moved"), "3L-64-4b"
    speech = deployed.parents[2] / "data/dev/u1.wav"
    model = Model(out, member=variant)
    assert not (out / f"{variant}{COMPUTED}").exists()

    def script(*words) -> subprocess.CompletedProcess:
        command = [sys.executable, out / "transcribe.py", *words]
        return subprocess.run(command, capture_output=True, text=True)

    wanted = model.text(model.tokens(families.wave(1.7, 1))[0])
    for _ in range(2):
        assert script("--member", variant, speech).stdout.strip() == wanted
        assert script("--assemble", variant).stdout.startswith(f"{variant}{COMPUTED}: ")
    assert espnet_ext.load(out).decoder.model.tokens(WAVES[0])
    recogniser = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(out / f"{variant}.model.onnx"), tokens=str(out / "tokens.txt"), feature_dim=20
    )
    stream = recogniser.create_stream()
    stream.accept_waveform(RATE, WAVES[1])
    recogniser.decode_stream(stream)
    ours = [model.symbols[token] for token in model.tokens(WAVES[1])[0]]
    theirs = [token.strip() for token in stream.result.tokens]
    assert ours and theirs == [token.replace("\u2581", "").strip() for token in ours]
    for option in ("--member", "--assemble"):
        wrong = script(option, "x", speech)
        assert (
            wrong.returncode
            and wrong.stderr == "no member 'x': model.json lists those of a family\n"
        )
    with (out / f"{variant}{COMPUTED}").open("r+b") as file:
        file.write(b"\x01\x02")
    with pytest.raises(UserError, match=f"{variant}{COMPUTED}"):
        espnet_ext.load(out)
    assert f"{variant}{COMPUTED} was changed" in script("--member", variant, speech).stderr
    recipes = (out / f"{variant}.weights.json").read_text()
    (out / f"{variant}.weights.json").write_text(recipes.replace('"limit": 7', '"limit": 3'))
    assert f"{variant}.weights.json was changed" in script("--assemble", variant).stderr


def test_transcribe_chooses_a_member(deployed, folder, monkeypatch, capsys):
    speech = deployed.parents[2] / "data/dev/u1.wav"
    sizes = {variant: one["bytes"] for variant, one in Model(folder).settings["members"].items()}
    least = min(sizes, key=lambda variant: sizes[variant])
    for options, variant in (
        (["--variant", "1L-24-4b"], "1L-24-4b"),
        (["--max-bytes", sizes[least]], least),
        ([], next(iter(sizes))),
    ):
        assert _command(monkeypatch, "transcribe", folder, speech, *options) == 0
        model = Model(folder, member=variant)
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
    for wrong in ({"../x": {}}, [], {"a": {"files": {"model.onnx": "/x"}, "bytes": 1}}):
        settings = json.loads((folder / "model.json").read_text()) | {"members": wrong}
        other = shutil.copytree(folder, tmp_path / "wrong", dirs_exist_ok=True)
        (other / "model.json").write_text(json.dumps(settings))
        if wrong:
            with pytest.raises(UserError, match="not the settings of an exported model"):
                espnet_ext.load(other)
    with pytest.raises(UserError, match="no member of 10 bytes; the smallest has"):
        espnet_ext.load(folder, max_bytes=10)
    changed = shutil.copytree(folder, tmp_path / "changed")
    with (changed / WEIGHTS).open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02")
    with pytest.raises(UserError, match=re.escape(WEIGHTS)):
        espnet_ext.load(changed)


def test_a_member_that_would_change_is_refused(deployed, tmp_path, monkeypatch):
    members = {variant: Bundle.of_folder(deployed / variant) for variant in VARIANTS[1:3]}
    monkeypatch.setattr(integers, "clipped", lambda y, limit, coarse: coarse.rows)
    with pytest.raises(RuntimeError, match="13 changed in the family"):
        export_family(members, tmp_path / "family", WAVES)
    assert not (tmp_path / "family").exists()


def test_a_streaming_transducer_and_what_was_rounded_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("espnet_ext.bridge.deployed.variants.SMALL", 30)
    streams.make(tmp_path, variants=("merged", "whole+8b", "whole+4b"))
    found = chosen_members(bundles(tmp_path / "exp/tiny/deploy"), ["merged", "whole+4b"], tmp_path)
    waves = [streams.wave(1.7, 1)]
    export_family(found, tmp_path / "family", waves, products="float32")
    for variant, bundle in found.items():
        export(bundle, tmp_path / "alone", waves, products="float32")
        one, other = Stream(Model(tmp_path / "alone")), Stream(Model("family", member=variant))
        for stream in (one, other):
            stream.accept(waves[0], last=True)
        assert one.tokens and (one.tokens, one.score) == (other.tokens, other.score)


def _quantised(weight, bits, per="channel"):
    if per == "channel":
        ints, scale = quantise.integers(weight, bits)
    else:
        ints, scale = quantise.grouped_integers(weight, bits, per)
    return ints.numpy().astype(np.int16), scale.numpy().reshape(len(weight), -1)


@pytest.mark.parametrize("per", ["channel", 16])
@pytest.mark.parametrize("source", ["float32", "8 bits"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_coarse_integers_follow_from_finer_ones(bits, source, per):
    torch.manual_seed(bits)
    weight = torch.randn(48, 96) * torch.rand(48, 1).exp()
    weight[5] = 0.0
    rows, scale = _quantised(weight, bits, per)
    if source == "float32":
        fine = Weight(weight.numpy(), None, FLOAT)
    else:
        fine = Weight(*_quantised(weight, 8), UINT8, 128)
    part = rows[:40, :64], scale[:40, : scale.shape[1] * 64 // 96 or 1]
    for ints, wanted in ((rows, scale), part):
        coarse = Weight(ints, wanted, UINT8, 8, True)
        found = computed(fine, coarse)
        assert found is not None and bool(found.moved) == (source != "float32")
        assert len(found.moved) < 0.1 * ints.size / 8 * (bits - 1)


def test_other_weights_are_not_taken_for_it():
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    coarse = Weight(*_quantised(weight, 4), UINT8, 8, True)
    changed = weight.clone()
    changed[7, 9] += 2 * float(coarse.scale[7, 0])
    for other in (changed, torch.randn(32, 64), weight[:16]):
        assert computed(Weight(*_quantised(other, 8), INT8), coarse) is None
        assert computed(Weight(other.numpy(), None, FLOAT), coarse) is None
    # With more groups than one in both, and not the same.
    grouped = Weight(*_quantised(weight, 4, 32), UINT8, 8, True)
    assert computed(Weight(*_quantised(weight, 8, 16), INT8), grouped) is None


def _saved(path, values, kind, times=None) -> None:
    """A graph with one stored matrix, and if ``times`` is given its product with that scale."""
    stored = in_pairs("w", values) if kind == INT4 else numpy_helper.from_array(values, "w")
    constants, nodes = [stored], [helper.make_node("Cast", ["w"], ["numbers"], to=FLOAT)]
    if times is not None:
        constants.insert(0, numpy_helper.from_array(times, "scale"))
        nodes.append(helper.make_node("Mul", ["numbers", "scale"], ["out"]))
    out = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, values.shape)]
    graph = helper.make_graph(nodes, "g", [], out, constants)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


@pytest.mark.parametrize("form", ["rows", "columns", "int4", "float16", "same"])
def test_parts_of_a_stored_matrix_are_not_stored_again(form, tmp_path):
    generator = np.random.default_rng(0)
    whole = generator.integers(-7, 8, (70, 64)).astype(np.int8)
    part = {"rows": whole[:60], "columns": whole[:66, :48], "int4": whole[:60, :51]}
    part = np.ascontiguousarray(part.get(form, whole[:66, :48] if form == "float16" else whole))
    kind = INT4 if form == "int4" else INT8
    if form == "float16":
        whole, part, kind = whole.astype(np.float16), part.astype(np.float16), None
    weights, recipes = WeightFile(tmp_path / WEIGHTS), []
    for name, values in (("a", whole), ("b", part)):
        _saved(tmp_path / f"{name}.onnx", values, kind)
        weights.take(tmp_path / f"{name}.onnx", "b.weights.bin", recipes)
    weights.close()
    stored = whole.nbytes // (2 if form == "int4" else 1)
    assert (tmp_path / WEIGHTS).stat().st_size == stored
    assert len(recipes) == (form in ("columns", "int4", "float16"))
    (tmp_path / "b.weights.json").write_text(json.dumps(recipes))
    (tmp_path / "b.weights.bin").write_bytes(assembled(tmp_path, "b"))
    for name, values in (("a", whole), ("b", part)):
        (found,) = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {})
        np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("across", [False, True])
def test_integers_are_computed_as_their_graph_reads_them(across, tmp_path):
    """Both orders of a float matrix, and an odd number of integers of 4 bits."""
    torch.manual_seed(0)
    weight = torch.randn(301, 47)  # its scales leave the graph, too, and first
    rows, scale = _quantised(weight, 4)
    numbers = np.ascontiguousarray(weight.numpy().T if across else weight.numpy())
    weights, recipes = WeightFile(tmp_path / WEIGHTS), []
    _saved(tmp_path / "a.onnx", numbers, FLOAT)
    _saved(tmp_path / "b.onnx", rows.astype(np.int8), INT4, scale)
    for name in "ab":
        weights.take(tmp_path / f"{name}.onnx", "b.weights.bin", recipes)
    weights.close()
    assert len(recipes) == 1
    (tmp_path / "b.weights.json").write_text(json.dumps(recipes))
    (tmp_path / "b.weights.bin").write_bytes(assembled(tmp_path, "b"))
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "b.onnx")).run(None, {})
    np.testing.assert_array_equal(found, rows * scale)
