"""Speech of "Beneath a Steel Sky": a disk of our own, read by the reader and by the script."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.data.audio import read_stretch
from espnet_ext.data.corpora.steel_sky import FOLDER, RAW, unpacked
from espnet_ext.errors import UserError
from tests.fixtures import packages
from tests.fixtures.rnc import packed

SCRIPT = Path(__file__).parents[4] / "egs/fotaq/asr1/local/untranscribed.py"
HEADER = b"\x81" + bytes(21)


def entry(number, place, size, in_blocks=False):
    place = place // 16 | 1 << 23 if in_blocks else place
    size |= 1 << 23  # a flag
    return b"".join(n.to_bytes(k, "little") for n, k in ((number, 2), (place, 3), (size, 3)))


@pytest.fixture
def game(tmp_path):
    """Two clips of speech, one at a place in blocks of 16 bytes, a piece of music, a text."""
    rng = np.random.default_rng(0)
    waves = [rng.integers(0, 256, size, dtype=np.uint8) for size in (RAW.rate, 9000)]
    disk = bytearray(b"text of the game")
    rows = [entry(60600, 0, 16)]
    for number, wave, in_blocks in ((51000, waves[0], True), (50007, waves[1], False)):
        disk += bytes(-len(disk) % 16)
        content = HEADER + packed(wave.tobytes())
        rows.append(entry(number, len(disk), len(content), in_blocks))
        disk += content
    rows.append(entry(59600, 0, 16))
    (tmp_path / "sky.dsk").write_bytes(disk)
    (tmp_path / "sky.dnr").write_bytes(len(rows).to_bytes(4, "little") + b"".join(rows))
    return tmp_path, waves


def read(folder):
    return unpacked(folder / "sky.dnr", folder / "sky.dsk", folder / "sky.pcm", 1)


def test_clips_hold_the_samples(game):
    folder, waves = game
    found = read(folder)
    assert [clip.id for clip in found] == ["sky-50007", "sky-51000"]
    for clip, wave in zip(found, reversed(waves), strict=True):
        samples, rate = read_stretch(
            clip.source, clip.id, clip.start, clip.end, raw=clip.raw.options
        )
        assert rate == RAW.rate
        np.testing.assert_allclose(samples, (wave.astype(np.float32) - 128) / 128, atol=1e-6)


def test_samples_stay_as_long_as_the_disk_does(game):
    folder, _ = game
    first, time = read(folder), (folder / "sky.pcm").stat().st_mtime_ns
    assert read(folder) == first and (folder / "sky.pcm").stat().st_mtime_ns == time
    (folder / "sky.pcm").write_bytes(b"short")
    assert read(folder) == first and (folder / "sky.pcm").stat().st_size > 9000


@pytest.mark.parametrize("name", ["sky.dnr", "sky.dsk"])
def test_files_that_are_cut_short_are_one_line(game, name):
    folder, _ = game
    path = folder / name
    path.write_bytes(path.read_bytes()[: -1 if name == "sky.dnr" else -100])
    with pytest.raises(UserError, match=rf"{name}.*cut short"):
        read(folder)
    (folder / "sky.dnr").write_bytes(b"\x01")
    with pytest.raises(UserError, match=r"sky\.dnr: cut short"):
        read(folder)
    assert not (folder / "sky.pcm").exists()


def test_a_damaged_clip_is_named_and_nothing_is_left(game):
    folder, _ = game
    path = folder / "sky.dsk"
    path.write_bytes(path.read_bytes().replace(b"RNC", b"RNX"))
    with pytest.raises(UserError, match=r"sky\.dsk: clip 50007: not packed by ProPack"):
        read(folder)
    assert not (folder / "sky.pcm").exists()


def test_the_script_writes_the_clips_once(game):
    folder, _ = game
    files = {f"./{FOLDER}/{name}": (folder / name).read_bytes() for name in ("sky.dnr", "sky.dsk")}
    package = packages.write(folder / "sky.deb", packages.deb(files))
    words = [
        "--package",
        str(package),
        "--sha256",
        hashlib.sha256(package.read_bytes()).hexdigest(),
    ]
    command = [sys.executable, SCRIPT, "--out", "speech", "--nj", "1", *words]

    def said():
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout

    assert "2 clips, 0.0 min" in said()
    found = sorted((folder / "speech/audio").glob("*.flac"))
    assert [path.stem for path in found] == ["sky-50007", "sky-51000"]
    wave, rate = soundfile.read(found[1])
    assert rate == 16000 and len(wave) == 16000
    assert said() == "speech: up to date\n"
