"""An exported folder in its user's hands: limits, another version, other files, bad audio."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import numpy_helper

import espnet_ext
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.errors import UserError
from espnet_ext.export.folder import export
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.digests import digests
from espnet_ext.formats.packed import read_member
from tests.fixtures import families

RATE = families.RATE
VARIANT = "3L-64-8b"
WAVES = [families.wave(seconds, seed) for seed, seconds in enumerate((1.1, 2.0))]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    return families.deployed(tmp_path_factory.mktemp("recipe"), (VARIANT, "3L-64-4b"))


@pytest.fixture(scope="module")
def exported(deployed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(Bundle.of_folder(deployed / VARIANT), folder, WAVES, products="float32")
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def test_a_limit_of_bytes_is_kept(exported):
    size = sum(path.stat().st_size for path in exported.iterdir())
    found = espnet_ext.load(exported, max_bytes=size)
    assert found(WAVES[0], RATE).text == espnet_ext.load(exported)(WAVES[0], RATE).text
    with pytest.raises(UserError, match=f"has {size:,} bytes, more than {size - 1:,}"):
        espnet_ext.load(exported, max_bytes=size - 1)
    for option in ({"device": "cuda"}, {"max_rtf": 1.0}, {"method": "ctc_greedy"}):
        with pytest.raises(UserError, match="method, max_rtf and device are of deployed models"):
            espnet_ext.load(exported, **option)
    with pytest.raises(UserError, match="a beam is for attention; its decoder is another one"):
        espnet_ext.load(exported, beam=3)


def test_a_graph_of_another_version_is_one_line(copy):
    graph = onnx.load(copy / "model.onnx")
    graph.ir_version = 99
    (copy / "model.onnx").write_bytes(graph.SerializeToString())
    settings = json.loads((copy / "model.json").read_text())
    settings["sha256"]["model.onnx"] = digests(copy)["model.onnx"]
    (copy / "model.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="ONNX Runtime cannot run it") as caught:
        espnet_ext.load(copy)
    assert len(str(caught.value).splitlines()) == 1
    soundfile.write(copy / "speech.wav", WAVES[0], RATE)
    found = script(copy, copy / "speech.wav")
    assert found.returncode == 1 and "of another version" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_folder_with_files_of_others_is_not_replaced(deployed, copy):
    bundle = Bundle.of_folder(deployed / "3L-64-4b")
    (copy / "thesis.pdf").touch()
    before = sorted(path.name for path in copy.iterdir())
    with pytest.raises(UserError, match=r"holds thesis\.pdf, which no export has"):
        export(bundle, copy, WAVES)
    assert sorted(path.name for path in copy.iterdir()) == before
    (copy / "thesis.pdf").unlink()
    export(bundle, copy, WAVES, products="float32")  # another export is
    (copy / "model.json").write_text("{}")
    with pytest.raises(UserError, match="exists and is no exported model"):
        export(bundle, copy, WAVES)


def script(folder: Path, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(folder / "transcribe.py"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_bad_audio_is_one_line_of_the_script(exported, tmp_path):
    files = {
        "good": (WAVES[0], RATE),
        "none": (WAVES[0][:0], RATE),
        "numbers": (np.append(WAVES[0], np.float32("nan")), RATE),
        "rate": (WAVES[0], RATE // 2),
        "long": (np.tile(WAVES[0], 30), RATE),
    }
    for name, (wave, rate) in files.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, rate, subtype="FLOAT")
    (tmp_path / "bytes.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "short.wav", WAVES[0][:10], RATE)
    assert script(exported, tmp_path / "short.wav").returncode == 0
    lines = {
        "none": "has no samples",
        "numbers": "no numbers",
        "rate": f"needs {RATE} Hz",
        "long": "at most 30 s",
        "bytes": "bytes.wav",
        "absent": "absent.wav",
    }
    wanted = espnet_ext.load(exported)(WAVES[0], RATE).text
    for name, line in lines.items():
        found = script(exported, tmp_path / "good.wav", tmp_path / f"{name}.wav")
        assert found.returncode == 1 and found.stdout.strip() == wanted
        assert line in found.stderr and len(found.stderr.splitlines()) == 1, name


def test_a_changed_or_truncated_graph_is_one_line_of_the_script(copy):
    soundfile.write(copy / "speech.wav", WAVES[0], RATE)
    whole = (copy / "model.onnx").read_bytes()
    for content in (whole[:-9], whole[:-9] + b"tampered!"):
        (copy / "model.onnx").write_bytes(content)
        found = script(copy, copy / "speech.wav")
        assert found.returncode == 1 and "model.onnx was changed" in found.stderr
        assert len(found.stderr.splitlines()) == 1
    (copy / "model.onnx").unlink()
    assert "is missing" in script(copy, copy / "speech.wav").stderr


@pytest.mark.parametrize("variant", [VARIANT, "3L-64-4b"])
def test_graphs_have_the_integers_of_the_packed_file(deployed, variant, tmp_path):
    bundle = Bundle.of_folder(deployed / variant)
    export(bundle, tmp_path / "onnx", WAVES, products="float32")
    graph = onnx.load(tmp_path / "onnx/model.onnx").graph
    stored = [numpy_helper.to_array(one) for one in graph.initializer]
    found = 0
    for name, weight in read_member(bundle.path).items():
        if not isinstance(weight, Quantised) or weight.ints.dim() != 2:
            continue
        rows, ints = len(weight.ints), weight.ints.numpy()
        assert any(np.array_equal(one, wanted) for one in stored for wanted in layouts(ints)), name
        found += rows * ints.shape[1]
    assert found > 20_000


def layouts(ints: np.ndarray) -> list[np.ndarray]:
    """How graphs hold integers (o, i): across, as one group, in pairs of a byte, as they are."""
    ints = ints.astype(np.int16)
    pairs = (ints + 8).astype(np.uint8)
    both = pairs[:, 0::2] | pairs[:, 1::2] << 4 if ints.shape[1] % 2 == 0 else pairs
    blocks = [
        both.reshape(len(ints), -1, size)
        for size in (8, 16, 32, 64, 128)
        if both.shape[1] % size == 0
    ]
    return [ints, ints[:, None], ints.T, (ints.T + 128).astype(np.uint8), *blocks]


def test_integers_that_became_floats_are_refused(deployed, tmp_path, monkeypatch):
    bundle = Bundle.of_folder(deployed / VARIANT)
    monkeypatch.setattr("espnet_ext.export.folder.LARGER", 0.0)
    monkeypatch.setattr("espnet_ext.export.folder.OVERHEAD", 0)
    with pytest.raises(UserError, match="integers became floats"):
        export(bundle, tmp_path / "onnx", WAVES)
    assert not (tmp_path / "onnx").exists()


def test_the_shortest_program_finds_the_text_of_the_script(exported, tmp_path):
    soundfile.write(tmp_path / "speech.wav", WAVES[1], RATE)
    words = [sys.executable, str(exported / "example.py"), str(tmp_path / "speech.wav")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == script(exported, tmp_path / "speech.wav").stdout != "\n"
    code = [line for line in (exported / "example.py").read_text().splitlines() if line.strip()]
    assert len(code) < 40
