"""Audio that is cut short, out of range or silent: refused by name, in every format."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.data.audio import check_samples, decode, read_stretch, read_wave
from espnet_ext.data.inputs import check_headers
from espnet_ext.errors import UserError

RATE = 16000
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def speech(seconds: float = 4.0, amplitude: float = 0.1) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=round(seconds * RATE))
    return (amplitude * noise).astype(np.float32)


def write(path: Path, samples: np.ndarray, kind=("WAV", "FLOAT")) -> Path:
    soundfile.write(path, samples, RATE, format=kind[0], subtype=kind[1])
    return path


@pytest.mark.parametrize("kind", FORMATS, ids="-".join)
def test_a_file_that_is_cut_short_is_refused(kind, tmp_path):
    whole = write(tmp_path / "whole", speech(40), kind)
    assert len(read_stretch(whole, "u1")[0]) == pytest.approx(40 * RATE, abs=300)
    content = whole.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(content[: len(content) * 3 // 10])
    for read in (lambda: read_stretch(cut, "u1"), lambda: decode(cut.read_bytes(), f"u1: {cut}")):
        with pytest.raises(UserError, match=r"^u1: .*(cut short|cannot decode)"):
            read()


def test_a_wave_from_a_pipe_has_no_length_and_is_whole(tmp_path):
    path = write(tmp_path / "a.wav", speech(1), ("WAV", "PCM_16"))
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    for length in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        content[4:8] = content[place : place + 4] = length
        path.write_bytes(content)
        if length != b"\0\0\0\0":
            assert len(read_stretch(path, "u1")[0]) == RATE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * 32768, "samples up to .*divide"),
        (lambda x: x * 40, "samples up to .*divide"),
        (lambda x: np.where(np.arange(len(x)) == 70, np.nan, x), "NaN"),
        (lambda x: np.where(np.arange(len(x)) == 70, np.inf, x), "infinite"),
    ],
    ids=["integers", "amplified", "nan", "infinity"],
)
def test_samples_out_of_range_are_refused_by_every_reader(change, reason, tmp_path):
    path = write(tmp_path / "a.wav", change(speech()).astype(np.float32))
    for read in (
        lambda: read_stretch(path, "u1"),
        lambda: read_wave(path, "u1", RATE),
        lambda: decode(path.read_bytes(), "u1"),
    ):
        with pytest.raises(UserError, match=f"u1.*{reason}"):
            read()


def test_codecs_may_overshoot():
    samples = speech()
    samples[::5000] = 1.3
    check_samples(samples, "u1")


def test_loud_speech_may_overshoot_often_but_a_wave_is_not_clipped_square():
    peaks = np.random.default_rng(1).standard_normal(RATE).astype(np.float32) * 0.4
    assert 0.01 < (np.abs(peaks) > 1).mean() < 0.02
    check_samples(np.clip(peaks, -1.3, 1.3), "u1")
    sine = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    with pytest.raises(UserError, match=r"u1: samples up to 1\.2, expected -1 to 1; divide them"):
        check_samples(1.2 * sine, "u1")


def test_channels_that_cancel(tmp_path):
    x = speech()
    path = write(tmp_path / "a.wav", np.stack([x, -x], axis=1))
    with pytest.raises(UserError, match=r"u1.*the channels cancel"):
        read_stretch(path, "u1")
    np.testing.assert_array_equal(read_stretch(path, "u1", channel=0)[0], x)


def test_an_utterance_that_ends_after_its_recording(tmp_path):
    path = write(tmp_path / "a.wav", speech(10))
    with pytest.raises(UserError, match=r"u1.*ends at 95.0 s, the audio at 10.00 s"):
        read_stretch(path, "u1", 9.5, 95.0)
    assert len(read_stretch(path, "u1", 9.5, 10.3)[0]) == RATE // 2


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
