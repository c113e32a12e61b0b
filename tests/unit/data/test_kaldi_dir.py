"""Kaldi data directories: what is written is read back, and every fault is named."""

import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.data import audio, kaldi_dir
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.kaldi_dir import Utterance, read_table, validate_data_dir, write_data_dir
from espnet_ext.errors import UserError

FILES = ("wav.scp", "text", "utt2spk", "spk2utt", "utt2dur")


def tone(path, seconds=0.5, rate=16000, channels=1):
    samples = 0.1 * np.sin(np.arange(round(seconds * rate)) / 9.0)
    soundfile.write(path, np.repeat(samples[:, None], channels, axis=1), rate)
    return path


@pytest.fixture
def corpus(tmp_path):
    """A valid directory of three utterances of two speakers; returns its folder."""
    items = []
    for key, speaker, text in (("b-2", "b", "two"), ("a-1", "a", "one"), ("b-10", "b", "ten")):
        tone(tmp_path / f"{key}.flac")
        items.append(Utterance(key, speaker, text, f"{key}.flac", 0.5))
    write_data_dir(tmp_path / "train", items)
    return tmp_path


def edit(corpus, name, old, new):
    path = corpus / "train" / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def check(corpus, **options):
    return validate_data_dir(corpus / "train", root=corpus, **options)


def test_files_are_kaldis(corpus):
    expected = {
        "wav.scp": "a-1 a-1.flac\nb-10 b-10.flac\nb-2 b-2.flac\n",
        "text": "a-1 one\nb-10 ten\nb-2 two\n",
        "utt2spk": "a-1 a\nb-10 b\nb-2 b\n",
        "spk2utt": "a a-1\nb b-10 b-2\n",
        "utt2dur": "a-1 0.5000\nb-10 0.5000\nb-2 0.5000\n",
    }
    found = {path.name: path.read_text() for path in (corpus / "train").iterdir()}
    assert found == expected


def test_valid_directory_is_read_back(corpus):
    items = check(corpus)
    assert [item.id for item in items] == ["a-1", "b-10", "b-2"]
    assert items[1] == Utterance("b-10", "b", "ten", "b-10.flac", 0.5)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abAB01-_é", min_size=1, max_size=6),
        st.text("ab é'", min_size=1).filter(str.strip),
        min_size=1,
    )
)
def test_any_ids_and_texts_come_back(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("any")
    items = [Utterance(key, key[0], text, "x.flac", 1.0) for key, text in table.items()]
    write_data_dir(folder / "set", items)
    found = {item.id: item.text for item in kaldi_dir.read_data_dir(folder / "set")}
    assert found == {key: " ".join(text.split()) for key, text in table.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a-1"}, "a-1 occurs twice"),
        ({"text": " "}, "b-2 has an empty transcript"),
        ({"id": "b 2"}, "is no id"),
        ({"speaker": ""}, "is no id"),
    ],
)
def test_bad_utterances_are_not_written_and_the_old_stay(corpus, change, message):
    items = kaldi_dir.read_data_dir(corpus / "train")
    before = {path.name: path.read_bytes() for path in (corpus / "train").iterdir()}
    with pytest.raises(UserError, match=message):
        write_data_dir(corpus / "train", [*items[:2], replace(items[2], **change)])
    assert {path.name: path.read_bytes() for path in (corpus / "train").iterdir()} == before


def test_nothing_to_write(tmp_path):
    with pytest.raises(UserError, match="no utterance"):
        write_data_dir(tmp_path / "train", [])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("text", "b-10 ten\n", "a-1 ten\n", "text: a-1 occurs twice"),
        ("wav.scp", "b-10 b-10.flac\n", "a-1 x\n", r"wav\.scp: a-1 occurs twice"),
        ("text", "b-10 ten", "b-10 ", "text: b-10 has an empty transcript"),
        ("text", "b-10 ten", "b-10", "text: b-10 has an empty transcript"),
        ("text", "b-10 ten\n", "", "text: b-10 is missing"),
        ("text", "b-2 two\n", "b-2 two\nb-3 three\n", r"text: b-3 is not in wav\.scp"),
        ("text", "b-10 ten\nb-2 two\n", "b-2 two\nb-10 ten\n", "text: not sorted, b-10"),
        ("text", "b-2 two\n", "\nb-2 two\n", "text: line 3 is empty"),
        ("text", "b-2 two\n", "b-2 tw", "text: cut short"),
        ("utt2spk", "b-10 b", "b-10 a", "spk2utt: speaker a does not agree"),
        ("spk2utt", "b b-10 b-2\n", "b b-10\n", "spk2utt: speaker b does not agree"),
        ("spk2utt", "b b-10 b-2\n", "", "spk2utt: speaker b does not agree"),
        ("utt2dur", "b-2 0.5000", "b-2 half", "utt2dur: b-2: not a number"),
        ("utt2dur", "b-2 0.5000", "b-2 0.7", r"utt2dur: b-2: 0\.7 s, but .* has 0\.5000 s"),
        ("wav.scp", "b-2.flac", "no.flac", r"wav\.scp: b-2: no audio file .*no\.flac"),
        ("wav.scp", "b-2.flac", "sox x |", r"wav\.scp: b-2: commands are not run"),
    ],
)
def test_a_fault_names_the_file_and_the_utterance(corpus, name, old, new, message):
    edit(corpus, name, old, new)
    with pytest.raises(UserError, match=message) as error:
        check(corpus)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES[:4])
def test_missing_file(corpus, name):
    (corpus / "train" / name).unlink()
    with pytest.raises(UserError, match=f"no file .*{name}; the stage that makes it has to run"):
        check(corpus)


def test_missing_directory(tmp_path):
    with pytest.raises(UserError, match="no such data directory"):
        validate_data_dir(tmp_path / "absent")


def test_empty_directory(corpus):
    for name in FILES:
        (corpus / "train" / name).write_text("")
    with pytest.raises(UserError, match="no utterance in it"):
        check(corpus)


def test_text_that_is_not_utf8(corpus):
    (corpus / "train/text").write_bytes(b"a-1 caf\xe9\n")
    with pytest.raises(UserError, match="text: not UTF-8"):
        check(corpus)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "b-2: cannot decode"),
        (lambda path: path.write_bytes(b"no audio at all" * 9), "b-2: cannot decode"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "b-2"),
        (lambda path: soundfile.write(path, np.zeros(0), 16000, format="WAV"), "b-2: .* is empty"),
        (lambda path: tone(path, rate=8000), "b-2: .* has 8000 Hz, expected 16000 Hz"),
        (lambda path: tone(path, channels=2), "b-2: .* has 2 channels"),
        (lambda path: tone(path, seconds=0.6), "utt2dur: b-2"),
    ],
)
def test_bad_audio(corpus, spoil, message):
    spoil(corpus / "b-2.flac")
    with pytest.raises(UserError, match=message):
        check(corpus)
    assert len(kaldi_dir.read_data_dir(corpus / "train")) == 3


def test_the_sets_of_a_corpus_are_written_checked_and_told(tmp_path, capsys):
    sets = {}
    for name in ("train", "test"):
        path = tone(tmp_path / f"{name}.flac")
        sets[name] = [Utterance(f"a-{name}", "a", f"text of {name}", str(path), 0.5)]
    write_sets(tmp_path, sets)
    assert kaldi_dir.read_data_dir(tmp_path / "test") == sets["test"]
    assert f"{tmp_path / 'train'}: 1 utterances, 0.0 min, 1 speakers" in capsys.readouterr().out
    sets["test"] = [replace(sets["test"][0], text="text of train")]
    with pytest.raises(UserError, match=r"test/text: a-test has the transcript of a-train"):
        write_sets(tmp_path, sets)


def test_audio_is_checked_by_several_processes_too(tmp_path):
    items = []
    for number in range(130):
        path = tone(tmp_path / f"{number:03}.flac", seconds=0.05)
        items.append(Utterance(f"s-{number:03}", "s", "word", str(path), 0.05))
    write_data_dir(tmp_path / "set", items)
    assert len(validate_data_dir(tmp_path / "set", jobs=2)) == 130
    (tmp_path / "099.flac").write_bytes(b"")
    with pytest.raises(UserError, match="s-099: cannot decode"):
        validate_data_dir(tmp_path / "set", jobs=2)


def test_text_in_two_sets(corpus):
    items = kaldi_dir.read_data_dir(corpus / "train")
    write_data_dir(corpus / "dev", [replace(items[0], id="c-1", text="new")])
    write_data_dir(corpus / "test", [replace(items[0], id="c-2", text="ten")])
    kaldi_dir.check_no_text_overlap(corpus / "train", [corpus / "dev"])
    with pytest.raises(UserError, match=r"test/text: c-2 has the transcript of b-10 in .*train"):
        kaldi_dir.check_no_text_overlap(corpus / "train", [corpus / "dev", corpus / "test"])


def test_flac_is_the_same_every_time_and_keeps_the_tone(tmp_path):
    time = np.arange(11025) / 11025
    samples = (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    seconds = audio.write_flac(tmp_path / "a.flac", samples, 11025)
    audio.write_flac(tmp_path / "b.flac", samples, 11025)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    found, rate = soundfile.read(tmp_path / "a.flac")
    assert (rate, seconds) == (16000, 1.0)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert np.abs(found - expected)[800:-800].max() < 2e-3
    assert audio.flac_seconds(tmp_path / "a.flac") == 1.0


def test_half_a_flac_is_not_taken_for_whole(tmp_path):
    rng = np.random.default_rng(0)
    audio.write_flac(tmp_path / "a.flac", rng.normal(0, 0.1, 32000).astype(np.float32), 16000)
    os.truncate(tmp_path / "a.flac", (tmp_path / "a.flac").stat().st_size // 2)
    assert audio.flac_seconds(tmp_path / "a.flac") is None


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "empty audio file"), (b"\0" * 99, "cannot decode")]
)
def test_undecodable_clip(data, message):
    with pytest.raises(UserError, match=f"CLIP: {message}"):
        audio.decode(data, "CLIP")


def test_other_audio_under_the_same_names_has_another_digest(tmp_path, monkeypatch):
    """Same ids, paths, texts and durations: only the digest tells."""
    monkeypatch.chdir(tmp_path)
    items = [Utterance(key, "a", f"text {key}", f"{key}.flac", 0.5) for key in ("a-1", "a-2")]
    sets = {"train": items[:1], "test": items[1:]}

    def written():
        write_sets("data", sets)
        inputs = kaldi_dir.audio_inputs("data/train")
        assert [path.name for path in inputs] == ["utt2dur", "audio.sha256"]
        return [path.read_text() for path in inputs], (tmp_path / "data/train/wav.scp").read_text()

    for key in ("a-1", "a-2"):
        tone(tmp_path / f"{key}.flac")
    first = written()
    assert written() == first
    # The same samples, encoded otherwise, are the same audio.
    samples, rate = soundfile.read("a-1.flac", dtype="int16")
    soundfile.write("a-1.flac", samples, rate, compression_level=0.0)
    assert written() == first
    soundfile.write("a-1.flac", samples // 2, rate)
    (durations, digests), listing = written()
    assert (durations, listing) == (first[0][0], first[1])
    assert digests != first[0][1]


def test_a_directory_made_elsewhere_has_no_digest(corpus):
    assert [path.name for path in kaldi_dir.audio_inputs(corpus / "train")] == ["utt2dur"]
    (corpus / "train/utt2dur").unlink()
    assert kaldi_dir.audio_inputs(corpus / "train") == []


def translated(corpus, *translations):
    found = [
        replace(item, translations=(("en", text),))
        for item, text in zip(check(corpus), translations, strict=True)
    ]
    write_data_dir(corpus / "train", found)
    return found


def test_translations_are_files_by_language_and_are_read_back(corpus):
    written = translated(corpus, "One, I say.", "ten", "two")
    assert (corpus / "train/text.en").read_text() == "a-1 One, I say.\nb-10 ten\nb-2 two\n"
    assert check(corpus) == written
    assert written[0].translation("en") == "One, I say."
    assert written[0].translation("de") == ""
    assert corpus / "train/text.en" in write_data_dir(corpus / "train", written)


def test_faults_of_translations(corpus):
    translated(corpus, "one", "ten", "two")
    edit(corpus, "text.en", "b-10 ten\n", "")
    with pytest.raises(UserError, match=r"train/text.en: b-10 is missing"):
        check(corpus)
    items = [replace(u, translations=()) if u.id == "a-1" else u for u in translated_items()]
    with pytest.raises(UserError, match="a-1 has no translation into en"):
        write_data_dir(corpus / "other", items)
    assert not (corpus / "other").exists()


def translated_items():
    return [
        Utterance(key, "s", f"text of {key}", f"{key}.flac", 0.5, "", (("en", f"{key} said"),))
        for key in ("a-1", "b-10", "b-2")
    ]


def test_a_translation_of_train_is_refused_in_another_set_unless_it_may_overlap(corpus):
    items = translated_items()
    train, test = items[:2], [replace(items[2], translations=items[0].translations)]
    os.chdir(corpus)
    with pytest.raises(UserError, match=r"test/text.en: b-2 has the translation of a-1"):
        write_sets(corpus, {"train": train, "test": test})
    write_sets(corpus, {"train": train, "test": test}, overlapping=("test",))


def test_byte_order_marks_in_tables_are_no_part_of_an_id(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfu1 one\n\xef\xbb\xbfu2 two\n")
    assert read_table(path) == {"u1": "one", "u2": "two"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"u1 a\nu1 b\n", "u1 occurs twice (line 2)"),
        (b"u1 a\n\nu2 b\n", "line 2 is empty"),
        (b"u1 \xff\n", "not UTF-8 at byte 3"),
    ],
)
def test_bad_table(tmp_path, content, part):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert part in str(error.value) and str(path) in str(error.value)
