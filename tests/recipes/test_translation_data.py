"""Stage 1 of the recipes of translation, and of LibriSpeech, on miniatures of their corpora."""

from pathlib import Path

import pytest
import soundfile

from espnet_ext.data.kaldi_dir import read_table, validate_data_dir
from espnet_ext.data.text import normalise_text
from tests.fixtures import real_speech, translation
from tests.fixtures.data_stage import refused, run


def prepared(recipe, folder, *words):
    """Run stage 1, which must succeed, twice; return its sets, every file of which is checked."""
    done = run(recipe, folder, *words)
    assert done.returncode == 0, done.stderr
    again = run(recipe, folder, *words)
    assert "up to date" in again.stdout, again.stderr
    sets = sorted(path.parent for path in (folder / "data").glob("*/wav.scp"))
    return {path.name: validate_data_dir(path, root=folder) for path in sets}, done.stdout


def assert_heard(folder, sets, numbers):
    """Assert that the audio of ``numbers`` (the end of an id: a recording) is that recording."""
    prepared = [u for us in sets.values() for u in us]
    for end, number in numbers.items():
        (path,) = {folder / u.audio for u in prepared if u.id.endswith(end)}
        samples, rate = soundfile.read(path)
        assert rate == real_speech.RATE
        found = [real_speech.likeness(samples, n) for n in range(number, number + 8)]
        assert found[0] > 0.9, (end, found)
        assert max(found[1:]) < 0.6, (end, found)  # and none of the seven others


def english(utterances, language="en"):
    return {normalise_text(u.translation(language)) for u in utterances}


def test_each_corpus_must_be_named(tmp_path):
    for name in ("librispeech_100/asr1", "covost2/st1", "mslt/st1"):
        refused(run(name, tmp_path), "give --corpus DIR", "folder")
        refused(run(name, tmp_path, "--corpus", "none"), "none")
        assert not (tmp_path / "data").exists()


@pytest.mark.net
@pytest.mark.parametrize("recipe", ["fillets/st1", "asterisk/st1"])
def test_the_real_packages(tmp_path, recipe):
    """Fetches 142 and 100 MB; the recipes compare all their counts themselves."""
    done = run(recipe, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "up to date" in run(recipe, tmp_path).stdout


# Fish Fillets ---------------------------------------------------------------------------------


def test_fillets_is_prepared(tmp_path):
    sets, said = prepared("fillets/st1", tmp_path, *translation.fillets(tmp_path))
    assert {name: len(us) for name, us in sets.items()} == {
        "train": 28,
        "dev": 6,
        "test_cs": 3,
        "test_nl": 3,
    }
    first = sets["test_cs"][0]
    assert first.text.startswith("cs ") and first.translation("en").endswith("!")
    assert first.translation("en")[0].isupper()  # as the game has it
    assert {u.speaker for us in sets.values() for u in us} == {"cs-small", "nl-small"}
    assert english(sets["test_cs"]) == english(sets["test_nl"])
    for name in ("dev", "test_cs", "test_nl"):
        assert not english(sets[name]) & english(sets["train"])
    assert "cs sounds 20" in said
    assert_heard(tmp_path, sets, {f"cs-small-city-city-{n:02}": n for n in range(20)})
    assert_heard(tmp_path, sets, {f"nl-small-city-city-{n:02}": 100 + n for n in range(20)})


def test_fillets_into_other_languages(tmp_path):
    words = translation.fillets(tmp_path)
    sets, _ = prepared("fillets/st1", tmp_path, *words, "--targets", "en de")
    assert sets["train"][0].translation("de").startswith("de ")
    before = {name: [u.id for u in us] for name, us in sets.items()}
    sets, _ = prepared("fillets/st1", tmp_path, *words)
    assert {name: [u.id for u in us] for name, us in sets.items()} == before
    assert not (tmp_path / "data/train/text.de").exists()
    refused(run("fillets/st1", tmp_path, *words, "--targets", "en dee"), "did you mean 'de'?")
    refused(run("fillets/st1", tmp_path, *words, "--targets", ""), "--targets is empty")


LINES = {
    "n-1": ('Say \\"stop\\"\\nnow', 'řekni \\"stůj\\"\\nhned'),
    "n-2": ("Level %1 is next", "úroveň %1 je další"),
    "n-3": ("They speak Russian", "они говорят по-русски"),
    "n-4": ("...", "..."),
    "n-5": ("A copy of a sound", "kopie zvuku"),
    "n-6": ("Never translated", "nikdy"),
    "n-7": ("[sighs] Well then", "(vzdychá) tak dobře"),
    "n-8": ("Far too long a line for so short a sound", "x" * 60),
}


def test_fillets_rules(tmp_path):
    script = {"script/new/demo_dialogs_cs.lua": translation.lua(LINES, "cs")}
    known = {name: pair for name, pair in LINES.items() if name != "n-6"}
    script["script/new/demo_dialogs_en.lua"] = translation.lua(known, "en")
    script["script/new/other.lua"] = b"\xff no dialogues, not read"
    sounds = {
        f"sound/new/cs/{name}.ogg": translation.clip(tmp_path, 900 + 40 * n)
        for n, name in enumerate([*LINES, "no-text"])
    }
    sounds["sound/new/cs/n-5.ogg"] = sounds["sound/new/cs/n-1.ogg"]
    sounds["sound/new/en/n-1.ogg"] = b"an effect, not read"
    sets, said = prepared(
        "fillets/st1", tmp_path, *translation.fillets(tmp_path, script, {"cs": sounds})
    )
    new = {u.id: u for us in sets.values() for u in us if "-new-" in u.id}
    assert {name.rpartition("-new-")[2] for name in new} == {"n-1", "n-7"}
    assert new["cs-small-new-n-1"].translation("en") == 'Say "stop" now'
    assert new["cs-small-new-n-7"].text == "tak dobře"
    for what in ("placeholder 1", "other script 1", "no words 1", "copies 1", "implausible 1"):
        assert f"cs {what}" in said, said
    assert "cs without text 1" in said and "cs without translation 1" in said


def test_fillets_faults(tmp_path):
    lost = {"script/new/dialogs_cs.lua": b'dialogStr("nobody")'}
    refused(
        run("fillets/st1", tmp_path, *translation.fillets(tmp_path, lost)), "no dialogId before"
    )
    foreign = {"script/new/dialogs_cs.lua": 'dialogId("a", "b", "ž")'.encode("latin2")}
    refused(run("fillets/st1", tmp_path, *translation.fillets(tmp_path, foreign)), "not UTF-8")
    broken = {"cs": {"sound/city/cs/city-00.ogg": b"no audio"}}
    words = translation.fillets(tmp_path, None, broken)
    refused(run("fillets/st1", tmp_path, *words), "city-00", "cannot decode")
    refused(run("fillets/st1", tmp_path, *words[:2]), "SHA-256")
    (tmp_path / "fillets-ng-data-nl_1.0.1-1.1_all.deb").unlink()
    refused(run("fillets/st1", tmp_path, *words), "no fillets-ng-data-nl_1.0.1-1.1_all.deb in it")
    assert not (tmp_path / "data/train").exists()


# Asterisk -------------------------------------------------------------------------------------


def test_asterisk_is_prepared(tmp_path):
    sets, _ = prepared("asterisk/st1", tmp_path, *translation.asterisk(tmp_path))
    # Prompt 4, of train, is read in another wording by the two other voices.
    assert {name: len(us) for name, us in sets.items()} == {
        "train": 48,
        "dev": 8,
        "test": 12,
        "unseen": 6,
        "retrieval_like": 22,
    }
    voices = {name: {u.speaker for u in us} for name, us in sets.items()}
    assert voices["unseen"] == voices["retrieval_like"] == {"it-menardi", "fr-armelle"}
    own = {"es-allison", "fr-june", "it-carlo", "ru-ivrvoice"}
    assert voices["train"] == voices["test"] == own
    trained = english(sets["train"])
    assert not trained & english(sets["test"]) and not trained & english(sets["unseen"])
    assert english(sets["unseen"]) == english(sets["test"])
    assert english(sets["retrieval_like"]) < trained
    texts = {u.id: u.text for us in sets.values() for u in us}
    assert not any("aside" in text or ":" in text for text in texts.values())
    assert any("а" in text for name, text in texts.items() if name.startswith("ru-"))
    assert "it-menardi-digits_0f" in texts or "it-menardi-digits_1f" in texts
    voices = ("es-allison", "fr-june", "it-carlo", "ru-ivrvoice", "it-menardi", "fr-armelle")
    for v, voice in enumerate(voices):
        assert_heard(tmp_path, sets, {f"{voice}-vm-{n:02}": n + 100 * v for n in (3, 5, 6, 7)})


def test_asterisk_faults(tmp_path):
    words = translation.asterisk(tmp_path, {"fr": ["a line without an id"]})
    refused(run("asterisk/st1", tmp_path, *words), "core-sounds-fr.txt.gz: line", "no 'id: text'")
    words = translation.asterisk(tmp_path)
    refused(run("asterisk/st1", tmp_path, *words, "--targets", "de"), "no language 'de'")
    assert not (tmp_path / "data").exists()


# LibriSpeech ----------------------------------------------------------------------------------


def test_librispeech_is_prepared(tmp_path):
    root = translation.librispeech(tmp_path / "LibriSpeech")
    words = ("--corpus", root, "--uncounted")
    sets, _ = prepared("librispeech_100/asr1", tmp_path, *words)
    assert {name: len(us) for name, us in sets.items()} == {
        "train": 4,
        "dev": 8,
        "test_clean": 4,
        "test_other": 4,
    }
    first = sets["train"][0]
    assert (first.id, first.speaker) == ("100-121123-0000", "100-121123")
    assert first.text == "chapter one the o'neil a x"
    assert Path(first.audio) == root / "train-clean-100/100/121123/100-121123-0000.flac"
    ends = {
        f"{100 * s + r}-{121123 + r}": 100 * (s - 1) + 10 * r for s in range(1, 6) for r in (0, 1)
    }
    assert_heard(
        tmp_path, sets, {f"{end}-{n:04}": m + n for end, m in ends.items() for n in (0, 1)}
    )


def test_librispeech_must_be_whole(tmp_path):
    root = translation.librispeech(tmp_path / "LibriSpeech")
    done = run("librispeech_100/asr1", tmp_path, "--corpus", root)
    refused(done, "train-clean-100 has 4, expected 28539")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda c: (c / "100-121123-0001.flac").unlink(), "no audio file for 100-121123-0001"),
        (
            lambda c: translation.speech(c / "100-121123-0002.flac", 9),
            "trans.txt has no line for 100-121123-0002",
        ),
        (lambda c: (c / "100-121123-0000.flac").write_bytes(b"x"), "cannot decode"),
        (lambda c: c.rename(c.with_name("notes")), "notes: readers and chapters have numbers"),
        (
            lambda c: (c / "100-121123.trans.txt").write_text(
                "100-121123-0000 ...\n100-121123-0001 A\n"
            ),
            "100-121123-0000 has no words",
        ),
        (lambda c: edit(c.parents[2] / "SPEAKERS.TXT", "100   |", "999   |"), "no such reader"),
        (
            lambda c: edit(c.parents[2] / "SPEAKERS.TXT", "| train-clean-100", "| dev-other"),
            "lists this reader in dev-other",
        ),
        (lambda c: edit(c.parents[2] / "SPEAKERS.TXT", " | 25.03", " 25.03"), "4 columns"),
    ],
)
def test_librispeech_faults(tmp_path, fault, message):
    root = translation.librispeech(tmp_path / "LibriSpeech", readers=1)
    fault(root / "train-clean-100/100/121123")
    refused(run("librispeech_100/asr1", tmp_path, "--corpus", root, "--uncounted"), message)
    assert not (tmp_path / "data/train").exists()


def edit(path, old, new):
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


# CoVoST 2 -------------------------------------------------------------------------------------


def test_covost_is_prepared(tmp_path):
    root = translation.covost(tmp_path / "cv")
    sets, said = prepared("covost2/st1", tmp_path, "--corpus", root)
    # By CoVoST's own splits; train_covost belongs to train.
    assert {name: len(us) for name, us in sets.items()} == {"train": 8, "dev": 2, "test": 2}
    first = min((u for us in sets.values() for u in us), key=lambda u: u.id.rpartition("_")[2])
    assert first.text == '"Fish 0 said, and left.'
    assert first.translation("zh-CN") == "鱼在管一。"
    assert first.speaker == "0" * 16
    assert (tmp_path / "data/test/text.zh-CN").is_file()
    for what in ("1 missing clip", "1 empty clip", "1 without a translation", "2 marked REMOVE"):
        assert what in said
    assert_heard(tmp_path, sets, {f"common_voice_en_{n:03}": n for n in range(12)})


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("covost_v2.en_zh-CN.tsv", "\ttrain_covost", "\tvalid", "has the split 'valid'"),
        ("covost_v2.en_zh-CN.tsv", "common_voice_en_001", "common_voice_en_000", "occurs twice"),
        ("covost_v2.en_zh-CN.tsv", "translation\t", "text\t", "no column 'translation'"),
        ("covost_v2.en_zh-CN.tsv", "missing.mp3\t", "missing.mp3\tx\t", "4 columns, not 3"),
        ("en/validated.tsv", "common_voice_en_003", "common_voice_en_777", "Common Voice 4"),
        ("covost_v2.en_zh-CN.tsv", "\ttest", "\tdev", "no clip of test is left"),
    ],
)
def test_covost_faults(tmp_path, file, old, new, message):
    root = translation.covost(tmp_path / "cv")
    edit(root / file, old, new)
    refused(run("covost2/st1", tmp_path, "--corpus", root), message)
    assert not (tmp_path / "data/train").exists()


def test_covost_rows_that_common_voice_does_not_list_drop_out_if_they_are_few(tmp_path):
    few = translation.covost(tmp_path / "few", count=17)  # and five rows of the traps
    edit(few / "en/validated.tsv", "common_voice_en_003", "common_voice_en_777")
    sets, said = prepared("covost2/st1", tmp_path, "--corpus", few)
    assert "1 not in validated.tsv" in said
    ids = {u.id.rpartition("_")[2] for us in sets.values() for u in us}
    assert ids == {f"{n:03}" for n in range(17) if n != 3}
    many = translation.covost(tmp_path / "many", count=14)
    edit(many / "en/validated.tsv", "common_voice_en_003", "common_voice_en_777")
    said = run("covost2/st1", tmp_path, "--corpus", many)
    refused(said, "1 of the 19 clips", "covost_v2.en_zh-CN.tsv", "Common Voice 4")
    edit(few / "en/validated.tsv", "common_voice_en_", "common_voice_fr_")
    refused(run("covost2/st1", tmp_path, "--corpus", few), "17 of the 22 clips")


def test_covost_names_the_languages_that_there_are(tmp_path):
    root = translation.covost(tmp_path / "cv")
    said = run("covost2/st1", tmp_path, "--corpus", root, "--target", "zh")
    refused(said, "no translations 'covost_v2.en_zh.tsv'", "did you mean 'covost_v2.en_zh-CN.tsv'?")


# MSLT -----------------------------------------------------------------------------------------


def test_mslt_is_prepared(tmp_path):
    root = translation.mslt(tmp_path / "MSLT_Corpus")
    sets, _ = prepared("mslt/st1", tmp_path, "--corpus", root)
    assert {name: len(us) for name, us in sets.items()} == {"dev": 3, "test": 3, "dev_test": 6}
    first = sets["test"][0]
    assert first.id == first.speaker == "mslt-test-en-0000"
    assert first.text == "So fish 0 in Test."  # the cleaned transcript, not the verbatim one
    assert first.translation("zh-CN") == "鱼在管子Test。"
    assert_heard(tmp_path, sets, {f"dev-en-{n:04}": n for n in range(3)})
    assert_heard(tmp_path, sets, {f"test-en-{n:04}": 100 + n for n in range(3)})
    japanese, _ = prepared("mslt/st1", tmp_path, "--corpus", root, "--target", "ja")
    assert japanese["dev"][0].translation("ja").startswith("さかな")


@pytest.mark.parametrize(
    ("source", "name", "number", "text"),
    [("ja", "ja", 200, "さかな 0 Dev"), ("zh-CN", "ch", 400, "鱼在管子Dev。")],
)
def test_mslt_spells_two_languages_otherwise_where_they_are_spoken(
    tmp_path, source, name, number, text
):
    root = translation.mslt(tmp_path / "MSLT_Corpus")
    words = ("--corpus", root, "--source", source, "--target", "en")
    sets, _ = prepared("mslt/st1", tmp_path, *words)
    assert {name: len(us) for name, us in sets.items()} == {"dev": 3, "test": 3, "dev_test": 6}
    first = sets["dev"][0]
    assert (first.id, first.text) == (f"mslt-dev-{name}-0000", text)
    assert first.translation("en") == "So fish 0 in Dev."
    assert_heard(tmp_path, sets, {f"dev-{name}-{n:04}": number + n for n in range(3)})
    assert_heard(tmp_path, sets, {f"test-{name}-{n:04}": number + 100 + n for n in range(3)})


def test_mslt_spelled_as_everywhere(tmp_path):
    root = translation.mslt(tmp_path / "MSLT_Corpus", count=1)
    for path in [*root.rglob("*.jp.wav"), *root.rglob("*.jp.snt")]:
        path.rename(path.with_name(path.name.replace(".jp.", ".ja.")))
    sets, _ = prepared("mslt/st1", tmp_path, "--corpus", root, "--source", "ja", "--target", "en")
    assert [u.text for u in sets["dev_test"]] == ["さかな 0 Dev", "さかな 0 Test"]


def test_mslt_faults(tmp_path):
    root = translation.mslt(tmp_path / "MSLT_Corpus")
    folder = root / "Data/MSLT_Test_EN_20170914"
    said = run("mslt/st1", tmp_path, "--corpus", root, "--target", "fr")
    refused(said, "no translations into 'fr'", "ja, zh")
    refused(run("mslt/st1", tmp_path, "--corpus", root, "--source", "de"), "language 'de'", "en")
    snt = folder / "MSLT_Test_EN_0001.T3.zh.snt"
    whole = snt.read_bytes()
    snt.write_bytes(whole[:-1])
    refused(run("mslt/st1", tmp_path, "--corpus", root), snt.name, "utf-16", "truncated")
    snt.unlink()
    refused(run("mslt/st1", tmp_path, "--corpus", root), snt.name, "No such file")
    snt.write_bytes(b"\xff\xfe")
    sets, said = prepared("mslt/st1", tmp_path, "--corpus", root)
    assert len(sets["test"]) == 2 and "1 MSLT_Test_EN_20170914 without a translation" in said


def test_sets_tell_the_audio_of_their_utterances(tmp_path):
    root = translation.mslt(tmp_path / "MSLT_Corpus")
    prepared("mslt/st1", tmp_path, "--corpus", root)
    parts = [read_table(tmp_path / f"data/{name}/audio.sha256") for name in ("dev", "test")]
    assert parts[0] | parts[1] == read_table(tmp_path / "data/dev_test/audio.sha256")
    assert len(set(parts[0].values()) | set(parts[1].values())) == 6
