"""Packages: checked by their sum, fetched without root, unpacked so that nothing can leave."""

import hashlib
import os
import shutil
import subprocess
import tarfile

import pytest

from espnet_ext.data.fetch.debian import Package, fetch, unpack_folder, unpack_member
from espnet_ext.errors import UserError
from tests.fixtures import packages

NAME = "usr/share/speech.bin"


def package_of(data):
    return Package("some-speech", "1.0-1", hashlib.sha256(data).hexdigest())


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Put an apt-get of ours on the PATH; it runs the script given and logs its arguments."""

    def install(script):
        tool = packages.write(tmp_path / "bin/apt-get", b"")
        log = tmp_path / "apt.log"
        tool.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in\n{script}\nesac\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
        return log

    return install


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_one_file_comes_out_whole(tmp_path, compression):
    data = os.urandom(70_001)
    path = packages.write(
        tmp_path / "a.deb", packages.deb({"./etc/x": b"y", f"./{NAME}": data}, compression)
    )
    target = unpack_member(path, NAME, tmp_path / "deep/er/speech.bin")
    assert target.read_bytes() == data
    assert [item.name for item in target.parent.iterdir()] == ["speech.bin"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb as the judge")
def test_our_packages_are_debian_packages(tmp_path):
    path = packages.write(tmp_path / "a.deb", packages.deb({f"./{NAME}": b"abc"}))
    listing = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True
    ).stdout
    assert NAME.encode() in listing


def test_given_file_is_used_where_it_lies(tmp_path):
    data = packages.deb({NAME: b"abc"})
    path = packages.write(tmp_path / "given.deb", data)
    assert fetch(package_of(data), tmp_path / "downloads", path) == path
    assert not (tmp_path / "downloads").exists()


def test_wrong_sum(tmp_path):
    path = packages.write(tmp_path / "given.deb", packages.deb({NAME: b"abc"}))
    with pytest.raises(UserError, match=r"not some-speech 1\.0-1.*expected.*get it again") as error:
        fetch(package_of(b"other"), tmp_path, path)
    assert "\n" not in str(error.value)


def test_truncated_file_has_a_wrong_sum(tmp_path):
    data = packages.deb({NAME: os.urandom(5000)})
    path = packages.write(tmp_path / "given.deb", data[:-1000])
    with pytest.raises(UserError, match=f"{len(data) - 1000} bytes.*cut short"):
        fetch(package_of(data), tmp_path, path)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        fetch(package_of(b""), tmp_path, tmp_path / "absent.deb")


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_truncated_archive(tmp_path, compression):
    data = packages.deb({NAME: os.urandom(50_000)}, compression)
    path = packages.write(tmp_path / "a.deb", data[:-20_000])
    old = packages.write(tmp_path / "out", b"old")
    with pytest.raises(UserError, match="damaged or no Debian package"):
        unpack_member(path, NAME, old)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"!<arch>\n", b"!<arch>\n" + b"?" * 60])
def test_no_package_at_all(tmp_path, data):
    with pytest.raises(UserError, match="Debian package"):
        unpack_member(packages.write(tmp_path / "a.deb", data), NAME, tmp_path / "out")


def test_missing_member(tmp_path):
    path = packages.write(tmp_path / "a.deb", packages.deb({"./else": b""}))
    with pytest.raises(UserError, match=f"holds no {NAME}"):
        unpack_member(path, NAME, tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "./usr/../../evil", "/etc/evil"])
def test_a_path_that_leaves_is_refused(tmp_path, name):
    inside = tmp_path / "inside"
    path = packages.write(tmp_path / "a.deb", packages.deb({name: b"evil", f"./{NAME}": b"x"}))
    with pytest.raises(UserError, match="leaves its folder"):
        unpack_member(path, NAME, inside / "out")
    assert sorted(item.name for item in tmp_path.rglob("*") if item.is_file()) == ["a.deb"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_only_a_regular_file_is_taken(tmp_path, kind):
    entry = tarfile.TarInfo(f"./{NAME}")
    entry.type = kind
    entry.linkname = "/etc/passwd"
    path = packages.write(tmp_path / "a.deb", packages.deb({}, extra=[entry]))
    with pytest.raises(UserError, match="not a regular file"):
        unpack_member(path, NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_download_then_no_second_download(tmp_path, apt):
    data = packages.deb({NAME: b"abc"})
    mirror = packages.write(tmp_path / "mirror.deb", data)
    log = apt(f"*update*) exit 0;;\n*download*) cp {mirror} ./got.deb;;")
    package = package_of(data)
    path = fetch(package, tmp_path / "downloads")
    assert path.read_bytes() == data
    assert path.name == "some-speech_1.0-1_all.deb"
    assert "some-speech=1.0-1" in log.read_text()
    calls = log.read_text()
    assert fetch(package, tmp_path / "downloads") == path
    assert log.read_text() == calls
    assert list((tmp_path / "downloads").iterdir()) == [path]


def test_lists_of_our_own_where_the_systems_fail(tmp_path, apt):
    data = packages.deb({NAME: b"abc"})
    mirror = packages.write(tmp_path / "mirror.deb", data)
    log = apt(
        "*Dir::State::Lists*update*) exit 0;;\n"
        f"*Dir::State::Lists*download*) cp {mirror} ./got.deb;;\n"
        "*) echo 'E: Unable to locate package' >&2; exit 100;;"
    )
    assert fetch(package_of(data), tmp_path / "downloads").read_bytes() == data
    folders = [word for word in log.read_text().split() if word.startswith("Dir::")]
    assert all(str(tmp_path / "downloads") in word for word in folders)


BROKEN_SOURCE = "E: Failed to fetch http://other.example/dists/x/Release  404  Not Found"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("E: Version '1.0-1' for 'some-speech' was not found", "do not offer some-speech 1.0-1"),
        ("E: Unable to locate package some-speech", "do not offer"),
        ("W: Temporary failure resolving 'mirror'\nE: Failed to fetch x", "no network"),
        ("E: The list of sources could not be read.", "list of sources could not be read"),
        (BROKEN_SOURCE, "a package source is broken (Failed to fetch http://other.example/"),
        ("E: Release file for http://x is expired (invalid since 3d)", "source is broken (Release"),
        ("E: The repository 'x' does not have a Release file.", "source is broken (The repository"),
    ],
)
def test_what_apt_cannot_do_is_one_line(tmp_path, apt, message, expected):
    apt(f'*) echo "{message}" >&2; exit 100;;')
    with pytest.raises(UserError) as error:
        fetch(package_of(b"x"), tmp_path / "downloads")
    assert expected in str(error.value)
    assert "or get some-speech_1.0-1_all.deb elsewhere and pass it with --package" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    assert ("network" in str(error.value)) == (expected == "no network")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_broken_source_of_something_else_is_no_hindrance(tmp_path, apt):
    data = packages.deb({NAME: b"abc"})
    mirror = packages.write(tmp_path / "mirror.deb", data)
    apt(
        f"*update*) echo '{BROKEN_SOURCE}' >&2; exit 100;;\n"
        f"*Dir::State::Lists*download*) cp {mirror} ./got.deb;;\n*) exit 100;;"
    )
    assert fetch(package_of(data), tmp_path / "downloads").read_bytes() == data


def test_what_the_update_said_explains_a_download_that_fails(tmp_path, apt):
    apt(
        "*update*) echo \"W: Temporary failure resolving 'mirror'\" >&2; exit 100;;\n"
        "*) echo 'E: Unable to locate package some-speech' >&2; exit 100;;"
    )
    with pytest.raises(UserError, match="no network"):
        fetch(package_of(b"x"), tmp_path / "downloads")


def test_a_download_of_something_else_is_not_kept(tmp_path, apt):
    apt("*update*) exit 0;;\n*download*) echo other > got.deb;;")
    with pytest.raises(UserError, match="is not some-speech"):
        fetch(package_of(b"x"), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_no_apt_get(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no apt-get here.*--package FILE"):
        fetch(package_of(b"x"), tmp_path / "downloads")


def test_a_folder_comes_out_whole_and_nothing_else(tmp_path):
    files = {"./usr/share/voices/a/x.ogg": b"1", "./usr/share/voices/b.ogg": b"2"}
    files |= {"./usr/share/voicesother/c.ogg": b"3", "./etc/d": b"4"}
    path = packages.write(tmp_path / "a.deb", packages.deb(files, "xz"))
    found = unpack_folder(path, "usr/share/voices", tmp_path / "out")
    assert {name: p.read_bytes() for name, p in found.items()} == {"a/x.ogg": b"1", "b.ogg": b"2"}
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "b.ogg",
        "x.ogg",
    ]
    with pytest.raises(UserError, match="holds no file below usr/none/"):
        unpack_folder(path, "usr/none", tmp_path / "none")
    hostile = packages.write(tmp_path / "h.deb", packages.deb({**files, "./../../x": b"5"}, "xz"))
    with pytest.raises(UserError, match="leaves its folder"):
        unpack_folder(hostile, "usr/share/voices", tmp_path / "h")
    cut = packages.write(tmp_path / "c.deb", path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(UserError, match=r"damaged"):
        unpack_folder(cut, "usr/share/voices", tmp_path / "c")


def test_zstandard_by_dpkg(tmp_path):
    """Python 3.12 does not read it."""
    tool = shutil.which("dpkg-deb")
    tree = tmp_path / "tree"
    packages.write(tree / NAME, b"abc")
    packages.write(
        tree / "DEBIAN/control",
        b"Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example>\nDescription: a\n",
    )
    words = [tool or "", "-Zzstd", "--build", tree, tmp_path / "a.deb"]
    if tool is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs dpkg-deb with zstandard")
    assert b"data.tar.zst" in (tmp_path / "a.deb").read_bytes()
    assert unpack_member(tmp_path / "a.deb", NAME, tmp_path / "out").read_bytes() == b"abc"
    cut = packages.write(tmp_path / "cut.deb", (tmp_path / "a.deb").read_bytes()[:-60])
    with pytest.raises(UserError, match="damaged or no Debian package"):
        unpack_member(cut, NAME, tmp_path / "out")
