"""Packages that somebody prepared: nothing lands outside, or expands without bound."""

import bz2
import io
import os
import tarfile

import pytest

from espnet_ext.data.fetch.debian import unpack_folder, unpack_member
from espnet_ext.errors import UserError
from tests.fixtures import packages


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
    with pytest.raises(UserError, match="damaged or no Debian package"):
        unpack_member(path, "s/a", tmp_path / "out")
