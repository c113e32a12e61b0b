"""The reader of the game's container, on a miniature with every trap of the real one."""

import subprocess
import sys

import pytest

from espnet_ext.data.corpora import queen
from espnet_ext.errors import UserError
from tests.fixtures import packages
from tests.fixtures import queen_builder as build


def open_game(tmp_path, files):
    return queen.Container(packages.write(tmp_path / "queen.1c", build.container(files)))


def test_every_clip_gets_its_speaker_and_text(tmp_path):
    clips = queen.read_sentences(open_game(tmp_path, build.game()))
    found = {clip.name: (clip.speaker, clip.text, clip.voice) for clip in clips}
    assert found == build.SCRIPT
    assert [clip.name for clip in clips] == sorted(found)


def test_clips_without_a_sentence_have_no_text(tmp_path):
    container = open_game(tmp_path, build.game())
    named = {f"{clip.name}.SB" for clip in queen.read_sentences(container)}
    assert set(container.names(".SB")) - named == {"0500SSSS1.SB", "UNTITLED.SB"}


def test_a_silent_command_advances_the_number_but_voices_nothing(tmp_path):
    files = build.game()
    files["050006P3.SB"] = b""  # the segment that *GD ends
    names = [clip.name for clip in queen.read_sentences(open_game(tmp_path, files))]
    assert "050006P3" not in names
    assert "050006P4" in names


def test_segments_are_numbered_in_hexadecimal():
    names = [name for name, _ in queen.segments("AB", "x*01" * 15 + "y")]
    assert names[8:11] == ["AB9", "ABA", "ABB"]
    assert names[15] == "AB10"


def test_position_command_takes_its_arguments():
    assert queen.segments("P", "one*XY00(237,112)two") == [("P1", "one"), ("P2", "two")]


@pytest.mark.parametrize(
    ("label", "voice"),
    [
        ("SEC", "secretary"),
        ("Secretary", "secretary"),
        ("PRIN", "princess_azura"),
        ("witch doctor", "witch_doctor"),
        ("Mary-Lou", "mary_lou"),
        ("Joe King", "joe"),
        ("...", "unknown"),
    ],
)
def test_a_voice_has_one_id(label, voice):
    assert queen.Sentence("X1", label, "text", (0, 9)).voice == voice


def test_labels_of_things_are_no_voices():
    assert not queen.Sentence("X1", "TEXT", "a", (0, 9)).is_voice
    assert queen.Sentence("X1", "Bud", "a", (0, 9)).is_voice


def test_not_the_container(tmp_path):
    with pytest.raises(UserError, match="no QTBL"):
        queen.Container(packages.write(tmp_path / "a", b"RIFF" + bytes(40)))


@pytest.mark.parametrize("keep", [17, 200, -1])
def test_truncated_container(tmp_path, keep):
    files = build.game() | {"ZZ.SB": b"last clip"}
    with pytest.raises(UserError, match="cut short"):
        queen.Container(packages.write(tmp_path / "a", build.container(files)[:keep]))


@pytest.mark.parametrize("name", ["C1.CUT", "LOU1.DOG", "QUEEN.JAS"])
@pytest.mark.parametrize("keep", [21, 45])
def test_damaged_script_is_named(tmp_path, name, keep):
    files = build.game()
    files[name] = files[name][:keep]
    with pytest.raises(UserError, match=f"{name} is damaged"):
        queen.read_sentences(open_game(tmp_path, files))


def test_missing_file_is_named(tmp_path):
    files = build.game()
    del files["QUEEN2.JAS"]
    with pytest.raises(UserError, match=r"holds no file QUEEN2\.JAS"):
        queen.read_sentences(open_game(tmp_path, files))


def test_reading_imports_no_torch():
    modules = (
        "espnet_ext.data.corpora.queen, espnet_ext.data.kaldi_dir, espnet_ext.data.fetch.debian"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("kind", [0, 2, 3])
def test_speech_that_is_not_mp3_is_refused(tmp_path, kind):
    data = bytearray(build.container(build.game()))
    data[12] = kind
    with pytest.raises(UserError, match=f"not MP3 .type {kind}, not 1"):
        queen.Container(packages.write(tmp_path / "queen.1c", bytes(data)))
