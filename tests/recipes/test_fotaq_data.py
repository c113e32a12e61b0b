"""Stage 1 of egs/fotaq/asr1 on a miniature package, as a user runs it."""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_ext.data import kaldi_dir
from espnet_ext.data.corpora import queen
from espnet_ext.data.corpora.splits import split_of
from tests.fixtures import packages
from tests.fixtures import queen_builder as build

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "egs/fotaq/asr1/local/data.py"


@pytest.fixture(scope="module")
def data():
    """The recipe's script as a module."""
    spec = importlib.util.spec_from_file_location("fotaq_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fotaq_data"] = module
    spec.loader.exec_module(module)
    return module


def sentences(part, count):
    """Return sentences that the hash puts into a set."""
    found = (f"this is sentence {a} {b}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz")
    return [text for text in found if split_of("fotaq", text) == part][:count]


def make_game():
    """Return the files of a game whose four sets are not empty, with clips to be left out."""
    lines = sentences("train", 9) + sentences("dev", 3) + sentences("test", 3)
    shared, own = sentences("train", 1)[0], sentences("dev", 4)[-1]
    files = build.game({name: build.mp3(1.0, 200 + 9 * i) for i, name in enumerate(build.SCRIPT)})
    files["BUD1.DOG"] = build.dialogue(7, joe=[], other=list(enumerate(lines, 1)))
    for number in range(1, len(lines) + 1):
        files[f"07{number:04X}P1.SB"] = build.mp3(1.5, 300 + 7 * number)
    odd = ["(sigh)", "too many characters for so short a clip", "The 24 hour shop.", "The 77 shop."]
    files["FRANK1.DOG"] = build.dialogue(8, joe=[], other=list(enumerate(odd, 1)))
    for number, seconds in enumerate((1, 0.5, 1, 1), 1):
        files[f"08{number:04X}P1.SB"] = build.mp3(seconds, 600 + number)
    files["CHEF1.DOG"] = build.dialogue(9, joe=[], other=[(1, shared + "!"), (2, own)])
    # Byte for byte a clip of test, under a text of train: the clip of train has to go.
    leak = sentences("train", 10)[-1]
    files["DEATH1.DOG"] = build.dialogue(10, joe=[], other=[(1, leak)])
    files["100001P1.SB"] = files[f"07{len(lines):04X}P1.SB"]
    for name in ("090001P1", "090002P1"):
        files[f"{name}.SB"] = build.mp3(1.2, 900)
    return files


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    content = packages.deb({"./usr/games/queen": b"#!", build.MEMBER: build.container(make_game())})
    return packages.write(tmp_path_factory.mktemp("package") / "queen.deb", content)


def command(folder, package, *options):
    sha = hashlib.sha256(package.read_bytes()).hexdigest()
    words = [sys.executable, SCRIPT, "--package", package, "--sha256", sha, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {"args": [str(word) for word in words], "cwd": folder, "env": environment}


def run(folder, package, *options, ok=True):
    result = subprocess.run(**command(folder, package, *options), capture_output=True, text=True)
    assert (result.returncode == 0) == ok, result.stderr
    assert "Traceback" not in result.stderr
    return result


def snapshot(folder):
    """Return the contents of the data directories and of the audio."""
    files = (path for path in sorted((folder / "data").rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.name[0] != "."
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, package):
    folder = tmp_path_factory.mktemp("recipe")
    return folder, run(folder, package)


def texts(folder, part):
    return {item.id: item.text for item in kaldi_dir.read_data_dir(folder / "data" / part)}


def test_sets_are_valid_and_sentences_fall_where_the_hash_says(prepared):
    folder, _ = prepared
    for part, count in (("train", 9), ("dev", 3), ("test", 3)):
        kaldi_dir.validate_data_dir(folder / "data" / part, root=folder)
        assert set(sentences(part, count)) <= set(texts(folder, part).values())


def test_paths_start_from_the_recipe_folder_and_ids_with_the_speaker(prepared):
    folder, _ = prepared
    items = kaldi_dir.read_data_dir(folder / "data/train")
    for item in items:
        assert item.audio == f"data/audio/{item.id}.flac"
        assert item.id.startswith(f"{item.speaker}-")
    assert "princess_azura" in {item.speaker for item in items}


def test_every_clip_is_used_or_left_out_for_a_reason(prepared):
    folder, _ = prepared
    ids = {
        key.split("-")[1]
        for part in ("train", "dev", "test", "unseen")
        for key in texts(folder, part)
    }
    left_out = {
        "080001P1": "nothing but an aside",
        "080002P1": "too many characters a second",
        "080004P1": "a digit that the table has not",
        "090001P1": "of unseen, with a text of train",
        "100001P1": "of train, with the audio of a test clip",
    }
    script = set(build.SCRIPT) | {"080003P1", "090002P1"} | {f"07{i:04X}P1" for i in range(1, 16)}
    assert ids == script
    assert not ids & set(left_out)
    audio = {path.stem.split("-")[1] for path in (folder / "data/audio").iterdir()}
    assert audio == ids


def test_text_is_normalised_and_digits_are_spelt_out(prepared):
    folder, _ = prepared
    found = {}
    for part in ("train", "dev", "test", "unseen"):
        found |= texts(folder, part)
    assert found["frank-080003P1"] == "the twenty four hour shop"
    assert found["joe-JOE00021"] == "caf\u00e9"
    assert found["joe-JOE00411"] == "it's a rock"


def test_unseen_holds_only_its_speakers_and_no_text_of_train(prepared):
    folder, _ = prepared
    unseen = kaldi_dir.read_data_dir(folder / "data/unseen")
    assert {item.speaker for item in unseen} == {"lou", "chef"}
    assert not {item.text for item in unseen} & set(texts(folder, "train").values())


def test_up_to_date_says_so_and_changes_nothing(prepared, package):
    folder, _ = prepared
    times = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")}
    assert run(folder, package).stdout == "data: up to date\n"
    assert {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")} == times


def test_a_removed_clip_is_made_again(prepared, package):
    folder, _ = prepared
    before = snapshot(folder)
    next((folder / "data/audio").glob("*.flac")).unlink()
    assert "up to date" not in run(folder, package).stdout
    assert snapshot(folder) == before


def test_wrong_and_truncated_package_leave_the_data_alone(prepared, package, tmp_path):
    folder, _ = prepared
    before = snapshot(folder)
    short = packages.write(tmp_path / "short.deb", package.read_bytes()[:-5000])
    for options in (("--sha256", "0" * 64), ("--package", short)):
        result = run(folder, package, *options, ok=False)
        assert result.stderr.count("\n") == 1
        assert "expected" in result.stderr
    assert snapshot(folder) == before


def test_killed_in_the_middle_then_run_again_gives_the_same(prepared, package, tmp_path):
    folder, _ = prepared
    process = subprocess.Popen(
        **command(tmp_path, package), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("data/audio/*.flac"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "data/.stamp.json").exists()
    # What a kill leaves at the worst moments: half of a clip, half of a set.
    packages.write(tmp_path / "data/.tmp-1.audio/joe-JOE00011.flac", b"fLaC half")
    packages.write(tmp_path / "data/.tmp-2.train/train/text", b"half")
    run(tmp_path, package)
    assert snapshot(tmp_path) == snapshot(folder)
    assert not list((tmp_path / "data").rglob(".tmp*"))


def test_a_half_written_clip_is_not_taken_for_whole(prepared, package, tmp_path):
    folder, _ = prepared
    name = "data/audio/joe-JOE00011"
    packages.write(tmp_path / f"{name}.source", (folder / f"{name}.source").read_bytes())
    packages.write(tmp_path / f"{name}.flac", (folder / f"{name}.flac").read_bytes()[:3000])
    run(tmp_path, package)
    assert snapshot(tmp_path) == snapshot(folder)


def test_audio_of_another_package_is_not_kept(prepared, package, tmp_path):
    folder, _ = prepared
    files = make_game()
    files["JOE00011.SB"] = files["JOE00021.SB"]
    content = packages.deb({build.MEMBER: build.container(files)})
    run(tmp_path, packages.write(tmp_path / "other.deb", content))
    assert snapshot(tmp_path) != snapshot(folder)
    run(tmp_path, package)
    assert snapshot(tmp_path) == snapshot(folder)


def test_audio_that_was_resampled_otherwise_is_not_kept(prepared, package, tmp_path):
    """The code of espnet_ext/data/audio.py is part of the note on what a file is made of."""
    shutil.copytree(ROOT / "espnet_ext", tmp_path / "code/espnet_ext")
    audio = tmp_path / "code/espnet_ext/data/audio.py"
    words = command(tmp_path, package)
    words["env"]["PYTHONPATH"] = str(tmp_path / "code")
    subprocess.run(**words, check=True, capture_output=True)
    first = snapshot(tmp_path)
    audio.write_text(audio.read_text().replace('quality="HQ"', 'quality="LQ"'))
    subprocess.run(**words, check=True, capture_output=True)
    second = snapshot(tmp_path)
    assert first.keys() == second.keys()
    flac = [name for name in first if name.endswith(".flac")]
    assert flac and all(first[name] != second[name] for name in flac)


@pytest.mark.parametrize(
    "module",
    [
        "audio",
        "corpora/clips",
        "fetch/debian",
        "corpora/queen",
        "corpora/splits",
        "kaldi_dir",
        "text",
    ],
)
def test_a_change_of_the_code_is_not_up_to_date(package, tmp_path, module):
    shutil.copytree(ROOT / "espnet_ext", tmp_path / "code/espnet_ext")
    words = command(tmp_path, package)
    words["env"]["PYTHONPATH"] = str(tmp_path / "code")
    subprocess.run(**words, check=True, capture_output=True)
    again = subprocess.run(**words, check=True, capture_output=True, text=True)
    assert again.stdout == "data: up to date\n"
    with open(tmp_path / f"code/espnet_ext/data/{module}.py", "a") as stream:
        stream.write("# changed\n")
    again = subprocess.run(**words, check=True, capture_output=True, text=True)
    assert "up to date" not in again.stdout


def test_one_process_and_a_limit(prepared, package, tmp_path):
    folder, _ = prepared
    run(tmp_path, package, "--nj", "1", "--limit", "3")
    for part in ("train", "dev", "test", "unseen"):
        assert 1 <= len(texts(tmp_path, part)) <= 3
        assert texts(tmp_path, part).items() <= texts(folder, part).items()


def test_a_trial_in_a_prepared_folder_keeps_its_audio(prepared, package, tmp_path):
    folder, _ = prepared
    shutil.copytree(folder / "data", tmp_path / "data")
    run(tmp_path, package, "--limit", "3")
    audio = {name: data for name, data in snapshot(folder).items() if "/audio/" in name}
    assert snapshot(tmp_path).items() >= audio.items()
    run(tmp_path, package)
    assert snapshot(tmp_path) == snapshot(folder)


@pytest.mark.parametrize("source", ["same", "another"])
def test_files_of_the_user_next_to_the_audio_stay(prepared, package, tmp_path, source):
    folder, _ = prepared
    shutil.copytree(folder / "data", tmp_path / "data")
    (tmp_path / "data/.stamp.json").unlink()
    if source == "another":
        for note in (tmp_path / "data/audio").glob("*.source"):
            note.write_text("another")
    own = {"data/audio/notes.txt": b"mine", "data/audio/more/a.flac": b"my own recording"}
    for name, content in own.items():
        packages.write(tmp_path / name, content)
    # A clip that a rule leaves out is ours.
    packages.write(tmp_path / "data/audio/frank-080002P1.flac", b"fLaC")
    run(tmp_path, package)
    assert snapshot(tmp_path) == snapshot(folder) | own


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (b"", "empty audio file"),
        (b"no audio" * 50, "cannot decode"),
        (build.mp3(1.0, rate=16000), "16000 Hz, expected 11025 Hz"),
        (build.mp3(1.0, channels=2), "2 channels"),
    ],
)
def test_a_bad_clip_is_named(tmp_path, clip, message):
    files = make_game() | {"JOE00411.SB": clip}
    content = packages.deb({build.MEMBER: build.container(files)})
    package = packages.write(tmp_path / "queen.deb", content)
    result = run(tmp_path, package, ok=False)
    assert f"joe-JOE00411: {message}" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "data/train").exists()


def test_the_pinned_package_is_the_default(tmp_path, package):
    words = [str(word) for word in command(tmp_path, package)["args"]]
    at = words.index("--sha256")
    del words[at : at + 2]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "is not flight-of-the-amazon-queen 1.0.0-9" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert "python local/data.py --out data --downloads downloads" in result.stdout
    assert "--sha256" not in result.stdout


def test_spoken_digits_need_a_table_entry(data):
    assert data.spell_out("born 13th july 1922") == "born thirteenth july nineteen twenty two"
    assert data.spell_out("route 66") is None


@pytest.mark.net
def test_the_real_package(data, tmp_path):
    """Fetches 35 MB; the recipe compares all its counts itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, env=environment, check=True)
    for part, count in data.WRITTEN.items():
        assert len(texts(tmp_path, part)) == count
    container = queen.Container(tmp_path / "downloads/queen.1c")
    assert len({s.voice for s in queen.read_sentences(container) if s.is_voice}) > 40
