"""Stage 1 of the classification recipes on miniatures of their corpora, as a user runs it."""

import hashlib
import json

import pytest
import soundfile

from espnet_ext.data.corpora.folds import read_folds
from espnet_ext.data.kaldi_dir import read_data_dir, read_table
from tests.fixtures import packages
from tests.fixtures import queen_builder as build
from tests.fixtures.acted_voices import hedgewars, wave
from tests.fixtures.data_stage import labels, refused, run, times


def test_each_corpus_must_be_named(tmp_path):
    for name in ("iemocap", "m3ed", "daic_woz"):
        refused(run(f"{name}/ser1", tmp_path), "give --corpus DIR", "folder that holds")
        refused(run(f"{name}/ser1", tmp_path, "--corpus", "none"), "none")
        assert not (tmp_path / "data").exists()


# Hedgewars ------------------------------------------------------------------------------------


def test_hedgewars_is_prepared(tmp_path):
    words = hedgewars(tmp_path)
    done = run("hedgewars/ser1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    found = labels(data / "all")
    assert len(found) == 3 * 16 - 1  # the copy of a clip of Mobster, which comes first, is out
    assert found["british-firepunch1"] == "effort"
    assert found["mobster-ouch"] == found["mobster-ow2"] == "pain"
    assert "pirate-ouch" not in found
    parts = {name: read_data_dir(data / name) for name in ("train", "dev", "test")}
    assert {name: {u.speaker for u in us} for name, us in parts.items()} == {
        "train": {"british"},
        "dev": {"pirate"},
        "test": {"mobster"},
    }
    for split, count in (("voice", 3), ("strict", 6), ("group", 3), ("group_strict", 6)):
        folds = read_folds(data, split)
        assert len(folds) == count
        tested = [u.id for fold in folds for u in read_data_dir(data / fold / "test")]
        assert sorted(tested) == sorted(found)
    before = times(data)
    again = run("hedgewars/ser1", tmp_path, *words)
    assert "up to date" in again.stdout
    assert times(data) == before


def test_hedgewars_strict_folds_share_neither_voice_nor_phrase(tmp_path):
    assert run("hedgewars/ser1", tmp_path, *hedgewars(tmp_path)).returncode == 0
    data = tmp_path / "data"

    def phrases(fold, part):
        found = read_data_dir(data / fold / part)
        return {u.id.partition("-")[2].rstrip("0123456789") for u in found}, {
            u.speaker for u in found
        }

    for fold in read_folds(data, "strict") + read_folds(data, "group_strict"):
        train, test = phrases(fold, "train"), phrases(fold, "test")
        assert train[0]
        assert not train[0] & test[0]
        assert not train[1] & test[1]
        assert {u.label for u in read_data_dir(data / fold / "train")} >= {"effort", "pain"}


def test_hedgewars_faults(tmp_path):
    other = hedgewars(tmp_path, {"Pirate/Whistle.ogg": b"x"})
    refused(run("hedgewars/ser1", tmp_path, *other), "Pirate/Whistle.ogg", "in no class")
    broken = hedgewars(tmp_path, {"Pirate/Laugh.ogg": b"no audio"})
    refused(run("hedgewars/ser1", tmp_path, *broken), "pirate-laugh", "cannot decode")
    empty = hedgewars(tmp_path, {"Pirate/Laugh.ogg": b""})
    refused(run("hedgewars/ser1", tmp_path, *empty), "pirate-laugh", "empty audio file")
    assert not (tmp_path / "data/all").exists()
    refused(run("hedgewars/ser1", tmp_path, *broken[:2]), "SHA-256")
    none = packages.write(tmp_path / "n.deb", packages.deb({"./usr/x": b"y"}))
    digest = hashlib.sha256(none.read_bytes()).hexdigest()
    refused(run("hedgewars/ser1", tmp_path, "--package", none, "--sha256", digest), "no file below")


def test_a_killed_conversion_goes_on_and_a_changed_source_is_converted_anew(tmp_path):
    words = hedgewars(tmp_path)
    assert run("hedgewars/ser1", tmp_path, *words).returncode == 0
    audio = tmp_path / "data/audio"
    kept = (audio / "british-hmm.flac").stat().st_mtime_ns
    (audio / "british-ow1.flac").write_bytes(b"cut short")
    for name in ("left-over.flac", "left-over.source", "mine.flac"):
        (audio / name).write_bytes(b"")
    (tmp_path / "data/.stamp.json").unlink()
    assert run("hedgewars/ser1", tmp_path, *words).returncode == 0
    assert (audio / "british-hmm.flac").stat().st_mtime_ns == kept
    assert soundfile.info(audio / "british-ow1.flac").samplerate == 16000
    assert not list(audio.glob("left-over.*"))
    assert (audio / "mine.flac").exists()  # nothing says that we made it


def test_folds_tell_the_audio_of_their_utterances(tmp_path):
    assert run("hedgewars/ser1", tmp_path, *hedgewars(tmp_path)).returncode == 0
    whole = read_table(tmp_path / "data/all/audio.sha256")
    part = read_table(tmp_path / "data/voice-pirate/test/audio.sha256")
    assert list(part) == list(read_table(tmp_path / "data/voice-pirate/test/wav.scp"))
    assert part.items() < whole.items()
    samples, _ = soundfile.read(tmp_path / "data/audio/pirate-hmm.flac", dtype="float32")
    assert part["pirate-hmm"] == hashlib.sha256(samples.tobytes()).hexdigest()


# IEMOCAP --------------------------------------------------------------------------------------


def iemocap(root, lines=None):
    """Five sessions; CRLF, raters' lines, subfolders and hidden files as in the release."""
    for s in range(1, 6):
        session = root / f"Session{s}"
        dialog = f"Ses0{s}F_impro01"
        turns = lines or [("F000", "neu"), ("M000", "exc"), ("M001", "ang"), ("F001", "fru")]
        turns = [*turns, ("F002", "sad"), ("F003", "hap"), ("M002", "xxx")]
        text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\r\n\r\n"
        for n, (turn, code) in enumerate(turns):
            name = f"{dialog}_{turn}"
            text += f"[{n}.2901 - {n}.9999]\t{name}\t{code}\t[2.5000, 2.5000, 2.5000]\r\n"
            text += "C-E2:\tNeutral;\t()\r\nA-E3:\tval 3; act 2; dom  2;\t()\r\n\r\n"
            wave(session / "sentences/wav" / dialog / f"{name}.wav", 0.4, pitch=200 + 9 * n)
        folder = session / "dialog/EmoEvaluation"
        (folder / "Categorical").mkdir(parents=True, exist_ok=True)
        (folder / f"{dialog}.txt").write_bytes(text.encode())
        (folder / f"._{dialog}.txt").write_bytes(b"\0\5\x16\7")
        (folder / "Categorical" / f"{dialog}_e1_cat.txt").write_text(f"{dialog}_F000 :Anger; ()\n")
    return ["--corpus", root, "--uncounted"]


def test_iemocap_is_prepared(tmp_path):
    words = iemocap(tmp_path / "release")
    done = run("iemocap/ser1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    found = labels(data / "all")
    assert len(found) == 5 * 5
    assert found["Ses03F-Ses03F_impro01_F000"] == "neutral"
    # The speaker is that of the turn, not of the dialogue; excited is happy.
    assert found["Ses03M-Ses03F_impro01_M000"] == "happy"
    assert set(found.values()) == {"angry", "happy", "neutral", "sad"}
    assert {u.speaker for u in read_data_dir(data / "all")} == {
        f"Ses0{s}{g}" for s in range(1, 6) for g in "FM"
    }
    folds = read_folds(data, "session")
    assert folds == [f"session-{n}" for n in range(1, 6)]

    def sessions(fold, part):
        return {u.speaker[:5] for u in read_data_dir(data / fold / part)}

    assert sessions("session-5", "test") == {"Ses05"}
    assert sessions("session-5", "dev") == {"Ses01"}
    assert sessions("session-5", "train") == {"Ses02", "Ses03", "Ses04"}
    assert "up to date" in run("iemocap/ser1", tmp_path, *words).stdout
    # The real corpus has other counts.
    refused(run("iemocap/ser1", tmp_path, *words[:2]), "expected 5531")


def test_iemocap_faults(tmp_path):
    root = tmp_path / "release"
    words = iemocap(root, [("F000", "ang"), ("F001", "joy")])
    refused(run("iemocap/ser1", tmp_path, *words), "Ses01F_impro01_F001", "unknown label 'joy'")
    words = iemocap(root)
    lost = root / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M001.wav"
    lost.unlink()
    refused(run("iemocap/ser1", tmp_path, *words), "Ses02F_impro01_M001 has no audio")
    lost.write_bytes(b"")
    refused(run("iemocap/ser1", tmp_path, *words), "Ses02F_impro01_M001", "empty audio file")
    wave(lost, 0.0)
    refused(run("iemocap/ser1", tmp_path, *words), "Ses02F_impro01_M001", "without samples")
    wave(lost)
    (root / "Session6").mkdir()
    refused(run("iemocap/ser1", tmp_path, *words), "Session6 is no session")
    (root / "Session6").rmdir()
    (root / "Session4").rename(root / "old4")
    refused(run("iemocap/ser1", tmp_path, *words), "no Session4")
    (root / "old4").rename(root / "Session4")
    twice = root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    twice.write_bytes(twice.read_bytes() * 2)
    refused(run("iemocap/ser1", tmp_path, *words), "labelled twice")
    twice.write_bytes(twice.read_bytes().replace(b"\t", b","))
    refused(run("iemocap/ser1", tmp_path, *words), twice.name, "no line of a turn", "tabs between")


# M3ED -----------------------------------------------------------------------------------------


def m3ed(root, label="Happy", name="anjia_1_1"):
    annotation: dict = {}
    for series, part in (("anjia", "train"), ("bianji", "val"), ("chuxin", "test")):
        turns = {}
        for n in (1, 2, 3):
            utterance = name if (series, n) == ("anjia", 1) else f"{series}_1_{n}"
            turns[utterance] = {
                "StartTime": "00:00:00:01",
                "EndTime": "00:00:01:01",
                "Text": "你好",
                "Speaker": "AB"[n % 2],
                "EmoAnnotation": {
                    "EmoAnnotator1": "Sad",
                    "final_mul_emo": "Sad,Happy",
                    "final_main_emo": label if n == 1 else "Neutral",
                },
            }
            wave(root / "modality_speech" / series / f"{'AB'[n % 2]}_{series}_1_{n}.wav", 0.3)
        info = {"A": {"Name": "甲 乙", "Age": 1}, "B": {"Name": "丙", "Age": 2}}
        annotation[series] = {f"{series}_1": {"SpeakerInfo": info, "Dialog": turns}}
        (root / "splitInfo").mkdir(exist_ok=True)
        (root / f"splitInfo/movie_list_{part}.txt").write_text(f"{series}\n")
    (root / "annotation.json").write_text(json.dumps(annotation), encoding="utf-8")
    return ["--corpus", root, "--uncounted"]


def test_m3ed_is_prepared_and_empty_files_are_left_out(tmp_path):
    root = tmp_path / "m3ed"
    words = m3ed(root)
    (root / "modality_speech/chuxin/B_chuxin_1_3.wav").write_bytes(b"")
    wave(root / "modality_speech/anjia/A_anjia_1_2.wav", 0.0)
    done = run("m3ed/ser1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "2 utterances left out" in done.stdout
    data = tmp_path / "data"
    assert labels(data / "train") == {
        "anjia_丙-B_anjia_1_1": "Happy",
        "anjia_丙-B_anjia_1_3": "Neutral",
    }
    assert labels(data / "test") == {
        "chuxin_丙-B_chuxin_1_1": "Happy",
        "chuxin_甲乙-A_chuxin_1_2": "Neutral",
    }
    assert "up to date" in run("m3ed/ser1", tmp_path, *words).stdout
    refused(run("m3ed/ser1", tmp_path, *words[:2]), "train has 3, expected 17427")


def test_m3ed_faults(tmp_path):
    root = tmp_path / "m3ed"
    refused(run("m3ed/ser1", tmp_path, *m3ed(root, label="Hapy")), "unknown class", "mean 'Happy'")
    refused(run("m3ed/ser1", tmp_path, *m3ed(root, name="anjia_9_9")), "no B_anjia_9_9.wav")
    words = m3ed(root)
    (root / "splitInfo/movie_list_val.txt").write_text("bianji\nchuxin\n")
    refused(run("m3ed/ser1", tmp_path, *words), "chuxin is in dev too")
    (root / "splitInfo/movie_list_val.txt").write_text("bianjii\n")
    refused(run("m3ed/ser1", tmp_path, *words), "no series 'bianjii'; did you mean 'bianji'")
    (root / "splitInfo/movie_list_val.txt").write_text("")
    refused(run("m3ed/ser1", tmp_path, *words), "bianji", "in no list")
    (root / "splitInfo/movie_list_val.txt").unlink()
    refused(run("m3ed/ser1", tmp_path, *words), "no splitInfo/movie_list_val.txt")
    words = m3ed(root)
    annotation = root / "annotation.json"
    whole = annotation.read_text(encoding="utf-8")
    for old, new, message in (
        ("final_main_emo", "main_emo", "anjia_1_1: no final_main_emo"),
        ('"Dialog"', '"Dialogue"', "anjia: no Dialog"),
        ('"B": {"Name"', '"C": {"Name"', "anjia_1_1: no B"),
        ("{", "", "annotation.json: not valid JSON"),
    ):
        annotation.write_text(whole.replace(old, new, -1 if new else 1), encoding="utf-8")
        refused(run("m3ed/ser1", tmp_path, *words), message)
    annotation.write_text(whole, encoding="utf-8")
    broken = root / "modality_speech/anjia/B_anjia_1_1.wav"
    broken.write_bytes(b"no audio")
    refused(run("m3ed/ser1", tmp_path, *words), "anjia_1_1", "cannot decode")


# DAIC-WOZ -------------------------------------------------------------------------------------

_TRAIN = "Participant_ID,PHQ8_Binary,PHQ8_Score,Gender\r\n"
_LISTS = ("train_split_Depression_AVEC2017.csv", "dev_split_Depression_AVEC2017.csv")


def daic(root, header=_TRAIN, separator="\t", bad="0"):
    """Ten training and four test participants; session 301 lacks Ellie, as three real ones do."""
    root.mkdir(exist_ok=True)
    train = [(str(n), str(int(n % 2 == 0))) for n in range(301, 311)]
    test = [("400", "1"), ("401", bad), ("402", "0"), ("403", "1")]
    for name, rows, head in ((_LISTS[0], train, _TRAIN), (_LISTS[1], test, header)):
        lines = "".join(f"{n},{b},7,1\r\n" for n, b in rows) + ",,,\r\n"
        (root / name).write_text(head + lines)
    for n, (number, _) in enumerate(train + test):
        wave(root / f"{number}_P/{number}_AUDIO.wav", 80.0, pitch=150 + n)
        turns = [] if number == "301" else [(0.0, 0.4, "Ellie", "hi i'm ellie")]
        turns += [(1 + 1.5 * k, 1.5 + 1.5 * k + k / 100, "Participant", "um") for k in range(50)]
        # None of these has a time in the recording of 80 s.
        turns += [(t, e, "Participant", "<sync>") for t, e in ((5, 5), (79, 200), (-1, 2))]
        rows = [("start_time", "stop_time", "speaker", "value"), *turns]
        text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
        (root / f"{number}_P/{number}_TRANSCRIPT.csv").write_text(text)
    return ["--corpus", root, "--uncounted"]


@pytest.mark.parametrize(
    "columns",
    ["Participant_ID,PHQ8_Binary", "participant_ID,PHQ8_Binary", "Participant_ID,PHQ_Binary"],
)
def test_daic_woz_is_prepared(tmp_path, columns):
    header = _TRAIN.replace("Participant_ID,PHQ8_Binary", columns)
    words = daic(tmp_path / "daic", header)
    done = run("daic_woz/ser1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert f"left out: {3 * 14} turns outside their recording" in done.stdout
    sets = {name: read_data_dir(tmp_path / "data" / name) for name in ("train", "dev", "test")}
    members = {name: {u.speaker for u in us} for name, us in sets.items()}
    assert members["dev"] == {"309", "310"}  # the fifth of each class
    assert members["train"] == {str(n) for n in range(301, 309)}
    assert members["test"] == {"400", "401", "402", "403"}
    count = {s: sum(u.speaker == s for u in sets["test"]) for s in members["test"]}
    assert count == {"400": 46, "401": 18, "402": 18, "403": 46}
    # The longest turns: those that begin late, in this miniature.
    longest = [u.seconds for u in sets["test"] if u.speaker == "401"]
    assert min(longest) == pytest.approx(0.5 + 32 / 100, abs=1e-3)
    assert {u.label for u in sets["train"]} == {"control", "depressed"}
    assert len(labels(tmp_path / "data/test")) == 128
    refused(run("daic_woz/ser1", tmp_path, *words[:2]), "expected 77")


def test_daic_woz_faults(tmp_path):
    root = tmp_path / "daic"

    def assert_refused(*words, **over):
        refused(run("daic_woz/ser1", tmp_path, *daic(root, **over)), *words)

    assert_refused("301_TRANSCRIPT.csv", "separated by commas, expected tabs", separator=",")
    assert_refused("separated by tabs, expected commas", header=_TRAIN.replace(",", "\t"))
    unknown = _TRAIN.replace("PHQ8_Binary", "PHQ")
    assert_refused("no column PHQ8_Binary or PHQ_Binary", header=unknown)
    assert_refused("participant 401", "'2', not 0 or 1", bad="2")
    words = daic(root)
    (root / "401_P/401_AUDIO.wav").unlink()
    refused(run("daic_woz/ser1", tmp_path, *words), "401_AUDIO.wav", "participant 401")
    (root / "401_P/401_AUDIO.wav").write_bytes(b"")
    refused(run("daic_woz/ser1", tmp_path, *words), "401_AUDIO.wav", "empty audio file")
    wave(root / "401_P/401_AUDIO.wav", 0.9)
    refused(run("daic_woz/ser1", tmp_path, *words), "401_AUDIO.wav", "before every turn")
    words = daic(root)
    lines = (root / _LISTS[1]).read_text()
    (root / _LISTS[1]).write_text(lines + "305,1,1,1\r\n")
    refused(run("daic_woz/ser1", tmp_path, *words), "participant 305 is in both lists")
    (root / _LISTS[1]).unlink()
    refused(run("daic_woz/ser1", tmp_path, *words), f"no {_LISTS[1]}")
    assert not (tmp_path / "data/test").exists()


# FOTAQ characters -----------------------------------------------------------------------------


def test_characters_are_prepared(tmp_path):
    files = build.master(objects=[], names=[], descriptions=[], replies=[])
    for key, label in ((7, "BUD1"), (5, "LOU1"), (6, "KLUNK1")):
        texts = [f"line {chr(97 + n)} of {label}" for n in range(14 if key != 6 else 3)]
        files[f"{label}.DOG"] = build.dialogue(key, joe=[], other=list(enumerate(texts, 1)))
        for n in range(1, len(texts) + 1):
            files[f"{key:02}{n:04X}P1.SB"] = build.mp3(1.0, 200 + 30 * key + 3 * n)
    deb = packages.write(tmp_path / "q.deb", packages.deb({build.MEMBER: build.container(files)}))
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    words = ["--package", deb, "--sha256", digest, "--each", "12"]
    done = run("fotaq/spk1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    found = labels(data / "all")
    assert sorted(found.values()) == ["bud"] * 12 + ["lou"] * 12  # Klunk has too few
    texts = {
        name: {u.text for u in read_data_dir(data / name)} for name in ("train", "dev", "test")
    }
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]
    tested = []
    for fold in read_folds(data, "text"):
        parts = {p: read_data_dir(data / fold / p) for p in ("train", "dev", "test")}
        assert not {u.text for u in parts["train"]} & {u.text for u in parts["test"]}
        tested += [u.id for u in parts["test"]]
    assert sorted(tested) == sorted(found)
    refused(run("fotaq/spk1", tmp_path, *words[:4], "--each", "99"), "no character has 99 clips")
