"""Stage 1 in parts, each perhaps on another machine, makes what one call makes."""

import os
import re
import shutil
from pathlib import Path

import pytest

from espnet_ext.data.corpora import checked_audio
from espnet_ext.data.kaldi_dir import read_table
from tests.fixtures import translation
from tests.fixtures.acted_voices import hedgewars
from tests.fixtures.data_stage import refused, run


def librispeech(folder):
    return ["--corpus", translation.librispeech(folder / "LibriSpeech"), "--uncounted"]


# Audio that is read where it is; clips of one folder; clips of several packages.
CORPORA = {
    "librispeech_100/asr1": librispeech,
    "hedgewars/ser1": hedgewars,
    "fillets/st1": translation.fillets,
}


def made(folder):
    """The contents of all files, but for what is kept to be up to date."""
    paths = [path for path in (folder / "data").rglob("*") if path.is_file()]
    shown = [path for path in paths if path.relative_to(folder / "data").parts[0][0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in shown}


def done(*words):
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("recipe", CORPORA)
def test_parts_are_joined_to_what_one_call_makes(tmp_path, recipe):
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    whole.mkdir(), apart.mkdir()
    words = CORPORA[recipe](tmp_path)
    done(recipe, whole, *words)
    for number in (3, 1):
        said = done(recipe, apart, *words, "--part", f"{number}/3")
        assert f"data: part {number} of 3: " in said
    assert not list(apart.glob("data/*/wav.scp"))
    before = {path: path.stat().st_mtime_ns for path in apart.glob("data/audio/*.flac")}
    assert len(before) < len(list(whole.glob("data/audio/*.flac"))) or recipe.startswith("libri")
    done(recipe, apart, *words)  # the second part is missing: it is made
    assert made(apart) == made(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(apart.glob("data/.checked*"))
    assert "up to date" in done(recipe, apart, *words, "--part", "2/3")


def test_what_a_part_has_checked_is_not_decoded_again_unless_it_changed(tmp_path, monkeypatch):
    words = librispeech(tmp_path)
    done("librispeech_100/asr1", tmp_path, *words, "--part", "1/1")
    monkeypatch.chdir(tmp_path)
    found = checked_audio.checked_audio(Path("data"))
    first, second, *_ = sorted(path for path in found if "train-clean" in path)
    changed = {path: ("0" * 64, found[path][1]) for path in (first, second)}
    checked_audio.note(Path("data"), "1_of_1.0", {**found, **changed})
    os.utime(second)
    done("librispeech_100/asr1", tmp_path, *words)
    digests = list(read_table(tmp_path / "data/train/audio.sha256").values())
    assert digests[:2] == ["0" * 64, found[second][0]]


def test_what_a_part_has_written_and_was_damaged_does_not_count(tmp_path):
    words = librispeech(tmp_path)
    done("librispeech_100/asr1", tmp_path, *words)
    expected = made(tmp_path)
    shutil.rmtree(tmp_path / "data")
    done("librispeech_100/asr1", tmp_path, *words, "--part", "1/1")
    note = tmp_path / "data/.checked/1_of_1.0.json"
    note.write_text(re.sub(r"[0-9a-f]{64}", "0" * 64, note.read_text()))
    done("librispeech_100/asr1", tmp_path, *words)
    assert made(tmp_path) == expected


def test_a_part_with_a_fault_says_so_and_is_not_kept(tmp_path):
    words = librispeech(tmp_path)
    faulty = sorted((tmp_path / "LibriSpeech").glob("train-clean-100/*/*/*.flac"))[0]
    content = faulty.read_bytes()
    faulty.write_bytes(content[: len(content) * 2 // 3])
    refused(run("librispeech_100/asr1", tmp_path, *words, "--part", "1/2"), faulty.stem)
    assert not list(tmp_path.glob("data/.checked/*"))
    faulty.write_bytes(content)
    done("librispeech_100/asr1", tmp_path, *words, "--part", "1/2")


def test_a_part_is_k_of_n(tmp_path):
    ended = run("librispeech_100/asr1", tmp_path, "--part", "3/2")
    assert ended.returncode == 2 and "needs K/N" in ended.stderr
