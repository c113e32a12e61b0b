"""Files that somebody prepared: no command runs, nothing is written outside, nothing hangs."""

import bz2
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.data.arks import ark_place, read_matrix
from espnet_ext.data.corpora import nist
from espnet_ext.data.corpora.clips import Clip, convert
from espnet_ext.data.corpora.tables import inside, read_tsv, reading_csv
from espnet_ext.data.fetch.debian import unpack_folder, unpack_member
from espnet_ext.data.fetch.whisper import read_member
from espnet_ext.data.inputs import check_headers, check_inputs
from espnet_ext.data.kaldi_dir import Utterance, write_data_dir
from espnet_ext.errors import UserError
from tests.fixtures import packages

# --- commands and devices in lists


@pytest.mark.parametrize(
    "place",
    ["touch ran; cat y |", "| touch ran", "touch ran |:5", "-:0", "a.ark", "a.ark:-1", "no.ark:0"],
)
def test_an_ark_is_a_file_and_an_offset(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for name in ("a.ark", "touch ran |", "touch ran; cat y |", "-"):  # files of that name too
        Path(name).write_bytes(b"\0" * 9)
    for read in (ark_place, read_matrix):
        with pytest.raises(UserError, match=r"^u1: "):
            read(place, "u1")
    assert not Path("ran").exists()


def test_decode_and_train_refuse_a_command_in_feats_scp(tmp_path, monkeypatch):
    from espnet_ext.bridge.speech_input import SpeechInput

    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(1600), 16000)
    write_data_dir("data/x", [Utterance("u1", "s", "a", "a.wav", 0.1)])
    Path("feats.scp").write_text("u1 touch ran; cat a.wav |\n")
    with pytest.raises(UserError, match="expected 'ark:offset'"):
        check_inputs(Path("data/x"), Path("feats.scp"), 16000)
    with pytest.raises(UserError, match="expected 'ark:offset'"):
        SpeechInput(16000, from_arks=True).read("u1", "touch ran; cat a.wav |", None)
    assert not Path("ran").exists()


def test_values_of_an_ark_are_finite_matrices(tmp_path):
    import kaldiio

    for name, matrix in (("nan", np.full((3, 2), np.nan)), ("vector", np.zeros(3))):
        path = tmp_path / f"{name}.ark"
        kaldiio.save_ark(str(path), {"u": matrix.astype(np.float32)})
        with pytest.raises(UserError, match="no matrix of finite numbers"):
            read_matrix(f"{path}:2", "u")


def test_pipes_and_devices_are_no_audio(tmp_path):
    from espnet_ext.data.audio import read_stretch, read_wave

    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        for read in (
            lambda path: read_wave(path, "u1", 16000),
            lambda path: read_stretch(path, "u1"),
            lambda path: check_headers(Path("wav.scp"), [("u1", str(path))], 16000),
        ):
            with pytest.raises(UserError, match="u1: no audio file"):
                read(path)


def test_a_file_that_claims_years_of_samples_is_refused_without_memory(tmp_path):
    from espnet_ext.data.audio import read_stretch

    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(size=8000) * 0.1, 16000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the number of samples in STREAMINFO: 36 bits
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cut short|cannot decode"):
        read_stretch(path, "u1")


# --- ids and paths


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", ".hidden", "a b", "a\0b", "a\nb", ""])
def test_ids_do_not_choose_where_files_go(tmp_path, name):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(8000)), 16000)
    clip = Clip(id=name, speaker="s", source=tmp_path / "a.wav", text="a")
    with pytest.raises(UserError, match="is no id"):
        convert([clip], tmp_path / "data/audio", 1)
    for utterance in (Utterance(name, "s", "a", "a", 1.0), Utterance("s-a", name, "a", "a", 1.0)):
        with pytest.raises(UserError, match="is no id"):
            write_data_dir(tmp_path / "data/x", [utterance])
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.wav"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0"])
def test_paths_of_lists_stay_in_the_corpus(tmp_path, name):
    with pytest.raises(UserError, match="leaves the folder"):
        inside(tmp_path, name)


# --- archives


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def deb_of(tar: bytes, suffix: str = "") -> bytes:
    whole = packages.deb({})
    start = whole.index(b"data.tar.xz")
    header = f"{'data.tar' + suffix:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(tar):<10}`\n".encode()
    return whole[:start] + header + tar + b"\n" * (len(tar) % 2)


@pytest.mark.parametrize(
    "name", ["./usr/s//etc/passwd", "usr/s/./x", "usr//s///y", "./usr/s/", "usr/s"]
)
def test_odd_names_stay_below_the_target(tmp_path, name):
    entries = [(tarfile.TarInfo(name), b"evil"), (tarfile.TarInfo("usr/s/good"), b"good")]
    path = packages.write(tmp_path / "a.deb", deb_of(tar_of(*entries)))
    target = tmp_path / "deep/target"
    found = unpack_folder(path, "usr/s", target)
    assert (target / "good").read_bytes() == b"good"
    assert all(made.resolve().is_relative_to(target) for made in found.values())
    files = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert all(p.is_relative_to(target) or p == path for p in files)


def test_a_name_that_is_file_and_folder(tmp_path):
    entries = [(tarfile.TarInfo("s/a"), b"file"), (tarfile.TarInfo("s/a/b"), b"below it")]
    path = packages.write(tmp_path / "a.deb", deb_of(tar_of(*entries)))
    with pytest.raises(UserError, match="s/a/b is a file and a folder"):
        unpack_folder(path, "s", tmp_path / "out")


def test_an_archive_may_not_expand_without_bound(tmp_path):
    entry = tarfile.TarInfo("s/huge")
    entry.size = 1 << 40
    path = packages.write(tmp_path / "a.deb", deb_of(entry.tobuf()))
    with pytest.raises(UserError, match="expands to too much"):
        unpack_member(path, "s/huge", tmp_path / "out")
    sparse = tarfile.TarInfo("s/sparse")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 31)}
    path = packages.write(tmp_path / "b.deb", deb_of(sparse.tobuf(tarfile.PAX_FORMAT)))
    with pytest.raises(UserError, match=r"expands to too much|damaged|holds no"):
        unpack_folder(path, "s", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


def test_damaged_bz2_is_one_line(tmp_path):
    content = bytearray(bz2.compress(tar_of((tarfile.TarInfo("s/a"), os.urandom(9000)))))
    content[3000:3010] = bytes(10)
    path = packages.write(tmp_path / "a.deb", deb_of(bytes(content), ".bz2"))
    with pytest.raises(UserError, match="damaged archive"):
        unpack_member(path, "s/a", tmp_path / "out")


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


# --- tables


@pytest.mark.parametrize("content", [b"a,b\n\xff\xfe,1\n", b"a,b\n" + b"x" * 200_000 + b",1\n"])
def test_tables_that_are_no_csv(tmp_path, content):
    import csv

    path = packages.write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=r"a\.csv: not"), reading_csv(path) as stream:
        list(csv.DictReader(stream))


@pytest.mark.parametrize(
    "read", [nist.read_stm, nist.read_pem, lambda p: list(read_tsv(p, ("a",)))]
)
def test_tables_that_are_not_utf_8(tmp_path, read):
    path = packages.write(tmp_path / "table", b"a\tb\n\xff\xfe")
    with pytest.raises(UserError, match="table: not UTF-8 at byte 4"):
        read(path)


@pytest.mark.parametrize("times", ["0 inf", "nan 1", "0 nan", "-inf 1", "2 1", "-1 1"])
def test_times_are_finite_and_in_order(tmp_path, times):
    stm = packages.write(tmp_path / "a.stm", f"f A s {times} words\n".encode())
    pem = packages.write(tmp_path / "a.pem", f"f A s {times}\n".encode())
    with pytest.raises(UserError, match="line 1"):
        nist.read_stm(stm)
    with pytest.raises(UserError, match="line 1"):
        nist.read_pem(pem)


# --- records


def test_names_in_records_are_no_html(tmp_path):
    from espnet_ext.results.pages.text import markdown, without_tags

    table = markdown(["set"], [["<img src=x onerror=alert(1)>"], ["</td><script>"], ["p < 0.05"]])
    assert "<img" not in table and "<script" not in table and "</td" not in table
    assert "p < 0.05" in table
    assert without_tags("a <!-- b --> <?x?>") == "a &lt;!-- b --> &lt;?x?>"


@pytest.mark.parametrize(
    "value", ["x\n<script>", "a\0b", "a\rb", "", 10**400, float("inf"), [[1]], None]
)
def test_values_of_records_are_one_line_or_finite(value):
    from espnet_ext.validation import Number, Strict, Text, parse

    class Made(Strict):
        text: Text
        number: Number

    with pytest.raises(UserError, match=r"^file: (text|number) must be"):
        parse(Made, {"text": value, "number": value}, "file")


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"digest": 1}', "[" * 10**5, "\xff"])
def test_a_damaged_stamp_is_no_stamp(tmp_path, content):
    from espnet_ext.files import Stamp

    stamp = Stamp(tmp_path / "stamp.json", [], [])
    stamp.path.write_text(content, encoding="latin-1")
    assert not stamp.is_current()
    stamp.write([])
    assert stamp.is_current()
