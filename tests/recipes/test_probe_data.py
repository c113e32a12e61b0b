"""Stage 1 of the probing recipes on miniatures of their corpora, in the official layouts."""

import subprocess

import pytest

from espnet_ext.data.corpora.folds import read_folds
from espnet_ext.data.kaldi_dir import read_data_dir
from espnet_ext.stages.tokens import labelled_sets
from tests.fixtures.acted_voices import hedgewars, wave
from tests.fixtures.data_stage import ROOT, labels, refused, run, times

TEN = "yes no up down left right on off stop go".split()


# Hedgewars ------------------------------------------------------------------------------------


def package(folder, spanish=True):
    """The miniature with the events that are in no class as audio, and a Spanish voice."""
    clips = [
        wave(folder / f"{pitch}.ogg", 0.3, 44100, 1, pitch).read_bytes() for pitch in (800, 900)
    ]
    names = ["British/Kamikaze", "British/Melon", "Pirate/Melon"]
    names += ["Default_es/Hmm"] if spanish else []  # strict folds need a voice of both halves
    return hedgewars(folder, {f"{name}.ogg": clips[n % 2] for n, name in enumerate(names)})


def test_hedgewars_is_prepared_for_both_tasks(tmp_path):
    words = package(tmp_path / "a")
    done = run("hedgewars/probe1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    affect = {n: labels(data / n) for n in ("train", "dev", "test")}
    words_of = {n: labels(data / f"keyword_{n}") for n in ("train", "dev", "test")}
    assert labels(data / "all") == affect["train"] | affect["dev"] | affect["test"]
    # Event-affect is what ser1 has, Spanish too; Kamikaze is a keyword and no class.
    assert affect["train"]["default_es-hmm"] == "neutral"
    assert "default_es-hmm" not in words_of["train"]
    assert words_of["train"]["british-kamikaze"] == "kamikaze"
    assert "british-kamikaze" not in affect["train"]
    # Repetitions of an event are one keyword.
    assert words_of["test"]["mobster-ow1"] == words_of["test"]["mobster-ow2"] == "ow"
    assert set(words_of["dev"].values()) <= set(words_of["train"].values())
    assert {u.speaker for u in read_data_dir(data / "keyword_test")} == {"mobster"}
    assert read_folds(data, "keyword") == ["keyword-british", "keyword-mobster", "keyword-pirate"]
    assert len(read_folds(data, "voice")) == 4
    assert read_folds(data, "group") == ["group-1", "group-2", "group-3"]
    before = times(data)
    assert "up to date" in run("hedgewars/probe1", tmp_path, *words).stdout
    assert times(data) == before
    refused(run("hedgewars/probe1", tmp_path, *words[:2]), "SHA-256")


def test_hedgewars_classes_are_those_of_ser1(tmp_path):
    words = package(tmp_path / "a", spanish=False)
    for name in ("ser1", "probe1"):
        (tmp_path / name).mkdir()
        assert run(f"hedgewars/{name}", tmp_path / name, *words).returncode == 0
    for part in ("train", "dev", "test", "voice-pirate/test"):
        first, second = (tmp_path / name / "data" / part for name in ("ser1", "probe1"))
        assert (first / "label").read_text() == (second / "label").read_text()
        assert (first / "audio.sha256").read_text() == (second / "audio.sha256").read_text()


def test_sets_of_two_kinds_of_classes_are_separate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev", "test", "keyword_train", "keyword_test", "token_list"):
        path = tmp_path / "data" / name / "label"
        path.parent.mkdir(parents=True)
        if name == "token_list":
            path.mkdir()
        else:
            path.write_text("a b\n")
    assert list(labelled_sets(tmp_path / "data", "train")) == ["dev", "test", "train"]
    assert list(labelled_sets(tmp_path / "data", "keyword_train")) == [
        "keyword_test",
        "keyword_train",
    ]


# Speech Commands ------------------------------------------------------------------------------


def commands(root, hashes=("0c40e715", "1ab2", "2cd3", "3ef4"), seconds=10):
    """Twelve words, three speakers' parts, noise of minutes cut short, traps of names."""
    for w, word in enumerate([*TEN, "bed", "wav"]):
        for h, speaker in enumerate(hashes):
            wave(root / word / f"{speaker}_nohash_0.wav", 0.3, pitch=200 + 31 * w + 7 * h)
    for n, name in enumerate(("doing_the_dishes", "pink_noise")):
        wave(root / "_background_noise_" / f"{name}.wav", seconds + 0.5, pitch=90 + n)
    (root / "_background_noise_/README.md").write_text("sounds\n")
    (root / "yes/._0c40e715_nohash_0.wav").write_bytes(b"\0\5\x16\7")
    entries = {
        name: [f"{word}/{hashes[k]}_nohash_0.wav" for word in [*TEN, "bed", "wav"]]
        for k, name in ((1, "validation"), (2, "testing"))
    }
    for name, lines in entries.items():
        (root / f"{name}_list.txt").write_text("\n".join(lines) + "\n")
    return ["--corpus", root, "--uncounted"]


def official(root, speaker="2cd3"):
    for n, label in enumerate([*TEN, "_unknown_"]):
        wave(root / label / f"{speaker}_nohash_0.wav", 0.3, pitch=200 + 31 * n)
    wave(root / "_silence_/dishes_3.wav", 0.3, pitch=90)
    return ["--test_set", root]


def test_speech_commands_are_prepared_for_35_words(tmp_path):
    words = commands(tmp_path / "sc")
    done = run("speech_commands/probe1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "12 labels are left out" in done.stdout
    data = tmp_path / "data"
    parts = {name: labels(data / name) for name in ("train", "dev", "test")}
    # A word that ends like the suffix keeps its name.
    assert parts["train"]["0c40e715-wav-0c40e715_nohash_0"] == "wav"
    assert {name: len(found) for name, found in parts.items()} == {
        "train": 24,
        "dev": 12,
        "test": 12,
    }
    assert {u.speaker for u in read_data_dir(data / "train")} == {"0c40e715", "3ef4"}
    assert not (data / "w12_train").exists()
    refused(run("speech_commands/probe1", tmp_path, *words[:2]), "expected 35")


def test_speech_commands_are_prepared_for_12_labels(tmp_path):
    words = commands(tmp_path / "sc") + official(tmp_path / "official")
    done = run("speech_commands/probe1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    train, dev, test = (labels(data / f"w12_{name}") for name in ("train", "dev", "test"))
    expected = {*TEN, "_unknown_", "_silence_"}
    assert set(train.values()) == set(dev.values()) == set(test.values()) == expected
    counts = {label: list(train.values()).count(label) for label in expected}
    # As many unknown words as one word has; the last tenth of each noise is dev's.
    assert counts == dict.fromkeys(TEN, 2) | {"_unknown_": 2, "_silence_": 18}
    assert dev["noise-pink_noise-0009"] == "_silence_"
    assert "noise-pink_noise-0010" not in train | dev  # half a second is left over
    seconds = {u.id: u.seconds for u in read_data_dir(data / "w12_train")}
    assert seconds["noise-pink_noise-0003"] == 1.0
    # The words' own task has neither.
    assert not {"_unknown_", "_silence_"} & set(labels(data / "train").values())
    assert "up to date" in run("speech_commands/probe1", tmp_path, *words).stdout


def test_speech_commands_faults(tmp_path):
    root = tmp_path / "sc"
    words = commands(root)

    def assert_refused(*expected, more=()):
        refused(run("speech_commands/probe1", tmp_path, *words, *more), *expected)
        assert not (tmp_path / "data/train").exists()

    refused(run("speech_commands/probe1", tmp_path), "give --corpus DIR")
    listed = (root / "testing_list.txt").read_text()
    (root / "testing_list.txt").write_text(listed + "yes/ffff_nohash_0.wav\n")
    assert_refused("testing_list.txt: yes/ffff_nohash_0.wav is not in")
    (root / "testing_list.txt").write_text(listed + listed.splitlines()[0])
    assert_refused("yes/2cd3_nohash_0.wav occurs twice")
    (root / "testing_list.txt").write_text(listed + "yes/1ab2_nohash_0.wav\n")
    assert_refused("yes/1ab2_nohash_0.wav is in both")
    (root / "testing_list.txt").write_text("".join(listed.splitlines(True)[1:]))
    assert_refused("speaker 2cd3 is in", "another release")
    (root / "testing_list.txt").unlink()
    assert_refused("no testing_list.txt in it")
    (root / "testing_list.txt").write_text(listed)
    odd = wave(root / "yes/nameless.wav")
    assert_refused("nameless.wav", "has the speaker")
    odd.unlink()
    assert_refused("no such folder", more=["--test_set", tmp_path / "none"])
    test = official(tmp_path / "official", speaker="0c40e715")
    assert_refused("speaker 0c40e715 is in training", more=test)
    (tmp_path / "official/bed").mkdir()
    assert_refused("bed is none of its 12 labels", more=test)
    assert_refused("no folder _silence_", more=["--test_set", root])
    (root / "stop").rename(root / "halt")
    for name in ("testing", "validation"):
        path = root / f"{name}_list.txt"
        path.write_text(path.read_text().replace("stop/", "halt/"))
    assert_refused("no folder 'stop'")
    (root / "halt").rename(root / "stop")
    (root / "_background_noise_").rename(root / "_noise_")
    words = commands(root)
    (root / "_background_noise_/pink_noise.wav").write_bytes(b"no audio")
    assert_refused("pink_noise.wav: cannot decode", more=official(tmp_path / "other"))
    for path in (root / "_background_noise_").iterdir():
        path.unlink()
    assert_refused("no background noise", more=official(tmp_path / "other"))
    (root / "yes/3ef4_nohash_0.wav").write_bytes(b"")
    assert_refused("3ef4-yes-3ef4_nohash_0", "empty audio file")


# VoxCeleb1 ------------------------------------------------------------------------------------

VOICES_OF = {"id10001": "A.J._Buckley", "id10003": "A.R._Rahman"}
# Ids of videos hold _ and -, also at their ends.
VIDEOS = {"id10001": ("1zcIwhmdeo4", "_z-BR0ERa9_"), "id10003": ("na8-QEFmj44", "-x_u0123456")}


def voxceleb(root, old=False, names=False):
    lines = []
    for n, (speaker, name) in enumerate(VOICES_OF.items()):
        for v, video in enumerate(VIDEOS[speaker]):
            for segment in (1, 2, 3):
                pitch = 200 + 90 * n + 20 * v + segment
                if old:
                    path = root / "voxceleb1_wav" / name / f"{video}_{segment:07d}.wav"
                else:
                    # The verification test separates speakers, not utterances.
                    half = "test" if speaker == "id10003" else "dev"
                    path = root / half / "wav" / speaker / video / f"{segment:05d}.wav"
                wave(path, 0.3, pitch=pitch)
                entry = f"{speaker}/{video}/{segment:05d}.wav"
                if names:
                    entry = f"{name}/{video}_{segment:07d}.wav"
                lines.append(f"{segment} {entry}\n")
    (root / "iden_split.txt").write_text("".join(lines))
    header = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    rows = "".join(f"{k}\t{v}\tm\tIndia, or so\tdev\n" for k, v in VOICES_OF.items())
    (root / "vox1_meta.csv").write_text(header + rows)
    return ["--corpus", root, "--uncounted"]


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_voxceleb1_is_prepared_from_either_layout(tmp_path, old, names):
    words = voxceleb(tmp_path / "vox", old, names)
    done = run("voxceleb1/probe1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    # The split spans the folders dev and test: each part has both speakers.
    for number, part in enumerate(("train", "dev", "test"), 1):
        found = labels(data / part)
        assert found == {
            f"{speaker}-{video}-{number:05d}": speaker
            for speaker in VOICES_OF
            for video in VIDEOS[speaker]
        }
    assert "up to date" in run("voxceleb1/probe1", tmp_path, *words).stdout
    refused(run("voxceleb1/probe1", tmp_path, *words[:2]), "expected 1251")


def test_voxceleb1_faults(tmp_path):
    root = tmp_path / "vox"
    words = voxceleb(root)

    def assert_refused(*expected):
        refused(run("voxceleb1/probe1", tmp_path, *words), *expected)
        assert not (tmp_path / "data/train").exists()

    refused(run("voxceleb1/probe1", tmp_path), "give --corpus DIR")
    split = (root / "iden_split.txt").read_text()

    def line(text):
        (root / "iden_split.txt").write_text(split + text + "\n")

    line("4 id10003/na8-QEFmj44/00003.wav")
    assert_refused("line 13: expected 1, 2 or 3")
    line("1 id10003/short/00003.wav")
    assert_refused("line 13: expected 1, 2 or 3")
    line("1 id10003/na8-QEFmj44/00009.wav")
    assert_refused("na8-QEFmj44/00009.wav is not in")
    line(split.splitlines()[0])
    assert_refused("line 13: id10001/1zcIwhmdeo4/00001.wav occurs twice")
    line("1 id10009/na8-QEFmj44/00001.wav")
    assert_refused("vox1_meta.csv has no speaker 'id10009'")
    line("1 A.J._Buckly/1zcIwhmdeo4_0000001.wav")
    assert_refused("did you mean 'A.J._Buckley'?")
    kept = [text for text in split.splitlines() if not text.startswith("1 id10003")]
    (root / "iden_split.txt").write_text("\n".join(kept) + "\n")
    assert_refused("id10003 is in dev but not in train")
    (root / "iden_split.txt").unlink()
    assert_refused("no iden_split.txt")
    (root / "iden_split.txt").write_text(split)
    meta = (root / "vox1_meta.csv").read_text()
    (root / "vox1_meta.csv").write_text(meta.replace("\t", ","))
    assert_refused("vox1_meta.csv: expected columns separated by tabs")
    (root / "vox1_meta.csv").write_text(meta + meta.splitlines()[1] + "\n")
    assert_refused("line 4: A.J._Buckley occurs twice")
    (root / "vox1_meta.csv").write_text(meta)
    (root / "test/wav").rename(root / "wav")
    assert_refused("no test/wav in it", "has files of both")
    (root / "dev").rename(root / "development")
    assert_refused("neither dev/wav nor voxceleb1_wav")
    for part in ("development", "wav"):
        (root / part).rename(root / f"{part}_")
    words = voxceleb(root, old=True)
    (root / "vox1_meta.csv").unlink()
    assert_refused("no", "vox1_meta.csv, which has the names")


# IEMOCAP and FOTAQ ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "script"),
    [("iemocap", "../ser1/local/data.py"), ("fotaq", "../spk1/local/data.py")],
)
def test_a_recipe_with_the_data_of_another_calls_its_script(recipe, script):
    shown = subprocess.run(
        [ROOT / "egs" / recipe / "probe1/run.sh", "--dry_run", "--stop_stage", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"python {script} --out data" in shown.stdout
    assert (ROOT / "egs" / recipe / "probe1" / script).is_file()
