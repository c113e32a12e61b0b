"""Texts of a model as transcripts: what is kept, what a kill leaves, and bad input."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.cli.label import add_arguments, model_key, run
from espnet_ext.data.kaldi_dir import Utterance, read_data_dir, validate_data_dir, write_data_dir
from espnet_ext.errors import UserError
from espnet_ext.recogniser import Segment, Transcript
from espnet_ext.stages.label import Labelling, audio_files, label


class Teacher:
    """A recogniser that says what it is told to."""

    class decoder:  # noqa: N801
        longest = 480000

    def __init__(self, **texts):
        self.texts, self.heard = texts, []

    def file(self, path):
        self.heard.append(path.stem)
        found = self.texts[path.stem]
        if isinstance(found, BaseException):
            raise found
        return Transcript("", 4.0, tuple(Segment(*row, ()) for row in found))


@pytest.fixture
def speech(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for name in ("calm", "unsure", "quiet", "endless", "two parts"):
        path = Path("speech", f"{name}.wav")
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 4 * 8000), 8000)
    Path("speech/notes.txt").write_text("no audio")
    return audio_files(["speech"])


TEXTS = {
    "calm": [(0.0, 4.0, "the quick queen", 0.9)],
    "unsure": [(0.0, 4.0, "the slow queen", 0.59)],
    "quiet": [(0.0, 4.0, "", None)],
    "endless": [(0.0, 4.0, "na " * 80, 0.99)],
    "two parts": [(0.0, 1.5, "one half", 0.8), (1.5, 4.0, "and another", 0.7)],
}


def test_texts_that_the_model_is_sure_of_are_kept(speech, capsys):
    label(Labelling(speech, Path("data/new"), None, 0.6, 1), Teacher(**TEXTS), "key")
    found = {u.id: u for u in validate_data_dir("data/new")}
    assert {name: u.text for name, u in found.items()} == {
        "calm": "the quick queen",
        "two_parts-0001": "one half",
        "two_parts-0002": "and another",
    }
    seconds = {name: u.seconds for name, u in found.items()}
    assert seconds == pytest.approx(
        {"calm": 4.0, "two_parts-0001": 1.5, "two_parts-0002": 2.5}, abs=1e-3
    )
    wave, rate = soundfile.read(found["two_parts-0002"].audio)
    assert rate == 16000 and len(wave) == 40000
    said = capsys.readouterr().out
    assert "3 texts of 0.1 min" in said
    assert "1 of a confidence below 0.6" in said and "1 without text" in said
    assert "1 more than 22 characters a second" in said


def test_another_confidence_recognises_nothing_again(speech):
    teacher = Teacher(**TEXTS)
    for least, texts in ((0.6, 3), (0.75, 2)):
        label(Labelling(speech, Path("data/new"), None, least, 1), teacher, "key")
        assert len(read_data_dir("data/new")) == texts
    assert len(teacher.heard) == len(speech)


def test_another_set_comes_first(speech):
    soundfile.write("own.flac", np.ones(16000) / 4, 16000)
    write_data_dir("data/train", [Utterance("b-1", "b", "mine", "own.flac", 1.0)])
    label(Labelling(speech, Path("data/both"), Path("data/train"), 0.8, 1), Teacher(**TEXTS), "key")
    texts = {u.id: u.text for u in read_data_dir("data/both")}
    assert texts == {"b-1": "mine", "calm": "the quick queen", "two_parts-0001": "one half"}


def test_after_a_kill_only_the_rest_is_recognised(speech):
    task = Labelling(speech, Path("data/new"), None, 0.6, 1)
    killed = Teacher(**{**TEXTS, "quiet": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        label(task, killed, "key")
    assert killed.heard == ["calm", "endless", "quiet"] and not Path("data/new").exists()
    begun = Path("data/.new.jsonl")
    begun.write_text(begun.read_text() + '{"file": "cut sh')
    other = Teacher(**{**TEXTS, "calm": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):  # of another model nothing is taken
        label(task, other, "another key")
    assert other.heard == ["calm"]
    again = Teacher(**TEXTS)
    with pytest.raises(KeyboardInterrupt):
        label(task, killed, "key")
    soundfile.write("speech/calm.wav", np.ones(32000) / 4, 8000)  # another recording
    killed.heard.clear()
    label(task, again, "key")
    assert again.heard == ["calm", "quiet", "two parts", "unsure"]
    assert len(read_data_dir("data/new")) == 3


def test_recordings_in_folders_have_the_names_of_these(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1/x.wav", "a/2/x.wav", "a/.git/x.wav", "a/._x.wav", "b/2/x y.FLAC"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("a/folder.wav").mkdir()
    found = audio_files(["a", "b/2/x y.FLAC"])
    assert {name: str(path) for name, path in found.items()} == {
        "1-x": "a/1/x.wav",
        "2-x": "a/2/x.wav",
        "x_y": "b/2/x y.FLAC",
    }
    with pytest.raises(UserError, match=r"a/1/x\.wav and a/2/x\.wav|would both be the utterance x"):
        audio_files(["a/1", "a/2"])


def test_a_long_segment_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("talk.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 58 * 8000), 8000)
    text = "word " * 40
    teacher = Teacher(talk=[(0.0, 29.0, text.strip(), 0.9), (29.0, 58.0, text.strip(), 0.9)])
    label(Labelling(audio_files(["talk.wav"]), Path("new"), None, 0.6, 1), teacher, "key")
    assert [u.seconds for u in read_data_dir("new")] == pytest.approx([29.0, 29.0], abs=1e-3)


def refused(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(UserError) as error:
        run(parser.parse_args([*words, *([] if "--out" in words else ["--out", "data/new"])]))
    return str(error.value)


def test_nothing_that_label_did_not_write_is_replaced(speech):
    soundfile.write("own.flac", np.ones(16000) / 4, 16000)
    write_data_dir("data/train", [Utterance("b-1", "b", "mine", "own.flac", 1.0)])
    before = Path("data/train/text").read_text()
    said = refused("model", "speech", "--out", "data/train")
    assert said == "data/train exists, and label did not write it: choose another --out"
    label(Labelling(speech, Path("data/new"), None, 0.6, 1), Teacher(**TEXTS), "key")
    assert "--more and --out are both" in refused("model", "speech", "--more", "data/new")
    inside = refused("model", "speech", "--out", "speech/new")
    assert inside == "--out speech/new would write into speech: choose another --out"
    Path("data/audio").mkdir(exist_ok=True)
    assert "would write into data/audio" in refused("model", "data/audio", "--out", "data/other")
    assert "speech exists" in refused("model", "speech", "--out", "speech")
    assert "is no id" in refused("model", "speech", "--out", ".")
    assert Path("data/train/text").read_text() == before
    assert all(path.is_file() for path in speech.values())


def test_what_cannot_be_labelled_is_one_line(speech, monkeypatch):
    assert refused("model", "nothing") == "no audio file or folder nothing"
    Path("empty").mkdir()
    assert refused("model", "empty").startswith("no audio file (.wav .flac")
    assert "--more data/train: no such" in refused("model", "speech", "--more", "data/train")
    assert "give the folder of the variant" in refused("model", "speech", "--variant", "x")
    task = Labelling(speech, Path("data/new"), None, 0.95, 1)
    with pytest.raises(
        UserError, match=r"no text is kept; left out: 4 of a confidence below 0\.95"
    ):
        label(task, Teacher(**{**TEXTS, "endless": []}), "key")
    unsure = Teacher(**{**TEXTS, "calm": [(0.0, 4.0, "text", None)]})
    with pytest.raises(UserError, match="gives no confidence: choose another --method"):
        label(task, unsure, "another")
    soundfile.write("own.flac", np.ones(16000) / 4, 16000)
    for more, says in (
        ({"text": "mine", "id": "calm"}, "has an utterance calm too"),
        ({"text": "mine", "label": "joy"}, "has classes or translations"),
    ):
        row = {"id": "b", "speaker": "b", "audio": "own.flac", "seconds": 1.0, **more}
        write_data_dir("data/train", [Utterance(**row)])
        with pytest.raises(UserError, match=says):
            label(replace(task, more=Path("data/train")), Teacher(**TEXTS), "key")
    monkeypatch.setattr(Teacher.decoder, "longest", None)
    with pytest.raises(UserError, match="a classifier writes no texts"):
        label(task, Teacher(**TEXTS), "key")
    assert not Path("data/new").exists()


def test_another_model_or_search_begins_anew(tmp_path):
    def key(**over):
        args = argparse.Namespace(**{"method": None, "variant": None, "beam": None, **over})
        return model_key(args, tmp_path / over.get("file", ""))

    for name in ("deploy/a/model.pth", "deploy/a/config.yaml", "deploy/b/model.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = [key(), key(method="x"), key(variant="x"), key(beam=5)]
    found += [key(file="deploy/a"), key(file="deploy/b")]
    found.append(key(file="deploy/a/model.pth"))
    for name in ("deploy/a/config.yaml", "deploy/b/model.pth"):
        (tmp_path / name).write_text("another")
        found.append(key())
    assert len(set(found)) == len(found)
    made = ("README.md", "scores.json", "LICENSE.md", "__pycache__/x.pyc", "b.weights.bin")
    for name in made:
        (tmp_path / "deploy/a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "deploy/a" / name).write_text("by stage 8, or by a run of the model")
    assert key() == found[-1]


@pytest.mark.parametrize("word", ["-0.1", "1.1", "nan", "x"])
def test_a_confidence_is_a_probability(word, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["model", "x.wav", "--out", "y", "--least", word])
    assert "needs a number from 0 to 1" in capsys.readouterr().err
