"""Texts of a model as transcripts: what is kept, what a kill leaves, and bad input."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.cli.label import add_arguments, run
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


def test_what_cannot_be_labelled_is_one_line(speech, monkeypatch):
    def refused(*words):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        with pytest.raises(UserError) as error:
            run(parser.parse_args([*words, "--out", "data/new"]))
        return str(error.value)

    assert refused("model", "nothing") == "no audio file or folder nothing"
    Path("empty").mkdir()
    assert refused("model", "empty").startswith("no audio file (.wav .flac")
    assert "--more data/train: no such" in refused("model", "speech", "--more", "data/train")
    assert "give the folder of the form" in refused("model", "speech", "--variant", "x")
    task = Labelling(speech, Path("data/new"), None, 0.95, 1)
    with pytest.raises(UserError, match=r"confidence of 0\.95 or more: try --least 0"):
        label(task, Teacher(**{**TEXTS, "endless": []}), "key")
    monkeypatch.setattr(Teacher.decoder, "longest", None)
    with pytest.raises(UserError, match="a classifier writes no texts"):
        label(task, Teacher(**TEXTS), "key")
    assert not Path("data/new").exists()


@pytest.mark.parametrize("word", ["-0.1", "1.1", "nan", "x"])
def test_a_confidence_is_a_probability(word, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["model", "x.wav", "--out", "y", "--least", word])
    assert "needs a number from 0 to 1" in capsys.readouterr().err
