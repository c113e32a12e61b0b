"""Clips: stretches, channels, files in files and headerless samples; kept, made anew, removed."""

import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from espnet_ext.data.corpora.clips import Clip, Raw, convert, convert_sets
from espnet_ext.data.kaldi_dir import Utterance, write_data_dir
from espnet_ext.errors import UserError
from tests.fixtures import real_speech


def write(path, samples, rate=16000, **layout):
    soundfile.write(path, samples, rate, **layout)
    return path


def heard(utterance):
    samples, rate = soundfile.read(utterance.audio)
    assert rate == 16000
    assert len(samples) / rate == pytest.approx(utterance.seconds)
    return samples


@pytest.fixture
def speech(tmp_path):
    """A clip of two seconds of speech."""
    source = write(tmp_path / "a.wav", real_speech.clip(0, 2.0))
    return Clip(id="s-a", speaker="s", source=source, text="a text", label="x")


def test_an_utterance_has_what_its_clip_has(speech, tmp_path):
    translations = (("en", "A text."),)
    (made,) = convert([replace(speech, translations=translations)], tmp_path / "audio", 1)
    assert (made.id, made.speaker, made.text, made.label) == ("s-a", "s", "a text", "x")
    assert made.translations == translations
    assert made.audio == str(tmp_path / "audio/s-a.flac")
    assert made.seconds == 2.0
    assert real_speech.likeness(heard(made), 0) > 0.99


def test_a_stretch_of_a_channel(speech, tmp_path):
    sides = np.stack([real_speech.clip(1, 2.0), real_speech.clip(2, 2.0)], 1)
    source = write(tmp_path / "call.wav", sides)
    clips = [
        replace(speech, id=name, source=source, start=0.5, end=1.5, channel=channel)
        for name, channel in (("s-left", 0), ("s-right", 1), ("s-both", None))
    ]
    left, right, both = (heard(u) for u in convert(clips, tmp_path / "audio", 1))
    assert np.allclose(left, sides[8000:24000, 0], atol=2e-4)
    assert np.allclose(right, sides[8000:24000, 1], atol=2e-4)
    assert np.allclose(both, sides[8000:24000].mean(1), atol=2e-4)
    with pytest.raises(UserError, match=r"s-a: .*call\.wav has 2 channel, no channel 3"):
        convert([replace(speech, source=source, channel=2)], tmp_path / "audio", 1)


@pytest.mark.parametrize(
    ("raw", "tolerance"),
    [
        (Raw(8000), 1e-4),
        (Raw(8000, endian="BIG"), 1e-4),
        (Raw(8000, "ULAW"), 0.05),
        (Raw(8000, "PCM_16", channels=2), 1e-4),
    ],
)
def test_samples_without_a_header(speech, tmp_path, raw, tolerance):
    samples = np.stack([real_speech.clip(n, 1.0, 8000) for n in range(raw.channels)], 1)
    layout = {"format": "RAW", "subtype": raw.encoding, "endian": raw.endian}
    source = write(tmp_path / "a.pcm", samples, 8000, **layout)
    clip = replace(speech, source=source, channel=raw.channels - 1, raw=raw)
    whole, part = convert(
        [clip, replace(clip, id="s-part", start=0.25, end=0.75)], tmp_path / "audio", 1
    )
    wanted = write(tmp_path / "a.wav", samples[:, -1], 8000)
    (expected,) = convert([replace(speech, source=wanted)], tmp_path / "expected", 1)
    assert whole.seconds == 1.0
    assert np.allclose(heard(whole), heard(expected), atol=tolerance)
    assert part.seconds == 0.5


def test_gsm_without_a_header(speech, tmp_path):
    layout = {"format": "RAW", "subtype": "GSM610"}
    source = write(tmp_path / "a.gsm", real_speech.clip(3, 1.0, 8000), 8000, **layout)
    clip = replace(speech, source=source, raw=Raw(8000, "GSM610"))
    (made,) = convert([clip], tmp_path / "audio", 1)
    assert made.seconds == pytest.approx(1.0, abs=0.03)
    assert real_speech.likeness(heard(made), 3) > 0.8


def test_a_file_inside_another(speech, tmp_path):
    inner = speech.source.read_bytes()
    (tmp_path / "box").write_bytes(b"a directory" + inner + b"the rest")
    clip = replace(speech, source=tmp_path / "box", span=(11, len(inner)), rate=16000)
    (made,) = convert([clip], tmp_path / "audio", 1)
    assert real_speech.likeness(heard(made), 0) > 0.99
    # Its own bytes decide what is made anew: the box may be written again.
    note = (tmp_path / "audio/s-a.source").read_text()
    os.utime(tmp_path / "box", (0, 0))
    convert([clip], tmp_path / "audio", 1)
    assert (tmp_path / "audio/s-a.source").read_text() == note
    with pytest.raises(UserError, match="s-a: 16000 Hz, expected 8000 Hz"):
        convert([replace(clip, rate=8000)], tmp_path / "audio", 1)
    with pytest.raises(UserError, match="s-a: cannot decode"):
        convert([replace(clip, span=(0, 30))], tmp_path / "audio", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "s-a: cannot read .*b.wav: No such file"),
        (b"", "s-a: .*b.wav: empty audio file"),
        (b"no audio", "s-a: cannot decode .*b.wav"),
    ],
)
def test_a_fault_names_the_clip_and_leaves_nothing(speech, tmp_path, content, message):
    source = tmp_path / "b.wav"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert([replace(speech, source=source)], tmp_path / "audio", 1)
    assert os.listdir(tmp_path / "audio") == []
    assert not list(tmp_path.glob(".tmp-*"))


def test_too_short(speech, tmp_path):
    with pytest.raises(UserError, match=r"s-a: .*160 samples from 1\.0 s on, less than 0\.025 s"):
        convert([replace(speech, start=1.0, end=1.01)], tmp_path / "audio", 1)


def test_what_was_made_of_the_same_audio_is_kept(speech, tmp_path):
    audio = tmp_path / "audio"
    other = replace(speech, id="s-b")

    def written():
        return {path.name: path.stat().st_mtime_ns for path in audio.glob("*.flac")}

    convert([speech, other], audio, 1)
    first = written()
    convert([speech, other], audio, 1)
    assert written() == first
    convert([speech, replace(other, start=0.5)], audio, 1)
    assert written()["s-a.flac"] == first["s-a.flac"]
    assert written()["s-b.flac"] != first["s-b.flac"]
    write(speech.source, real_speech.clip(1, 2.0))
    (made, _) = convert([speech, other], audio, 1)
    assert real_speech.likeness(heard(made), 1) > 0.99


def test_files_of_clips_that_are_no_more_are_removed(speech, tmp_path):
    audio = tmp_path / "audio"
    other = replace(speech, id="s-b")
    convert([speech, other], audio, 1)
    (audio / "mine.flac").write_bytes(b"the user's")
    convert([speech], audio, 1, keep_others=True)
    assert (audio / "s-b.flac").exists()
    convert([speech], audio, 1)
    assert sorted(os.listdir(audio)) == ["mine.flac", "s-a.flac", "s-a.source"]


def test_sets_share_clips(speech, tmp_path):
    other = replace(speech, id="s-b")
    sets = {"train": [speech, other], "words_train": [replace(speech, label="y")]}
    made = convert_sets(sets, tmp_path / "audio", 1)
    assert [u.label for u in made["train"]] == ["x", "x"]
    assert [u.label for u in made["words_train"]] == ["y"]
    assert made["words_train"][0].audio == made["train"][0].audio
    with pytest.raises(UserError, match="s-a is two clips, of "):
        convert_sets({"train": [speech], "test": [replace(speech, start=1.0)]}, tmp_path / "x", 1)


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
