"""The frame of stage 1: its options, up to date, counts, the user's folder and packages."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from espnet_ext.data.kaldi_dir import validate_data_dir
from tests.fixtures import packages, real_speech
from tests.fixtures.data_stage import ROOT, refused

CORPUS = """
'''Prepare a corpus of one speaker.'''
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import main
from espnet_ext.files import write_text

def prepare(stage):
    root = stage.corpus("list.txt")
    if stage.is_current([root / "list.txt"], [stage.args.label]):
        return
    names = (root / "list.txt").read_text().split()
    stage.expect({"clips": 2}, {"clips": len(names)})
    clips = [
        Clip(id=f"s-{n}", speaker="s", label=stage.args.label, source=root / f"{n}.wav")
        for n in names
    ]
    write_text(stage.out / "note", "mine")
    stage.write(stage.convert_sets({"train": clips}), extra_files=[stage.out / "note"])

if __name__ == "__main__":
    main(
        __doc__, prepare, corpus="the folder that holds list.txt",
        add_options=lambda parser: parser.add_argument("--label", default="x"),
    )
"""
PACKAGES = """
'''Prepare a corpus of packages.'''
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import main
from espnet_ext.data.fetch.debian import Package, unpack_folder

FETCHED = [Package("one", "1:2", "0" * 64){more}]

def prepare(stage):
    if stage.is_current():
        return
    clips = []
    for package in FETCHED:
        files = unpack_folder(stage.fetch(package), "usr/share", stage.downloads / package.name)
        clips += [
            Clip(id=f"s-{{n[:-4]}}", speaker="s", label="x", source=p) for n, p in files.items()
        ]
    stage.expect({{"clips": 9}}, {{"clips": len(clips)}})
    stage.write(stage.convert_sets({{"train": clips}}))

if __name__ == "__main__":
    main(__doc__, prepare, packages=FETCHED)
"""


@pytest.fixture
def run(tmp_path):
    """Runs local/data.py of the text given."""

    def start(text, *words):
        script = tmp_path / "local/data.py"
        script.parent.mkdir(exist_ok=True)
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        return subprocess.run(
            [sys.executable, script, "--nj", "1", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    for number, name in enumerate("ab"):
        soundfile.write(root / f"{name}.wav", real_speech.clip(number, 0.5), 16000)
    (root / "list.txt").write_text("a b\n")
    return root


def test_the_users_folder(run, corpus, tmp_path):
    refused(run(CORPUS), "give --corpus DIR: the folder that holds list.txt")
    refused(run(CORPUS, "--corpus", "none"), "--corpus none: no such folder; it is the folder")
    (tmp_path / "empty").mkdir()
    refused(run(CORPUS, "--corpus", "empty"), "empty: no list.txt in it; --corpus is the folder")
    done = run(CORPUS, "--corpus", "corpus")
    assert done.returncode == 0, done.stderr
    assert "data/train: 2 utterances" in done.stdout
    found = validate_data_dir(tmp_path / "data/train", root=tmp_path)
    assert [u.audio for u in found] == ["data/audio/s-a.flac", "data/audio/s-b.flac"]


def test_it_is_up_to_date_until_something_changes(run, corpus, tmp_path):
    words = ("--corpus", "corpus")
    assert run(CORPUS, *words).returncode == 0

    def current(text=CORPUS, *more):
        done = run(text, *words, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout == "data: up to date\n"

    assert current()
    assert not current(CORPUS, "--label", "y")
    assert not current()
    assert not current(CORPUS + "# changed\n")
    assert current(CORPUS + "# changed\n")
    (corpus / "list.txt").write_text("b a\n")
    assert not current()
    for made in ("data/audio/s-a.flac", "data/train/audio.sha256", "data/note"):
        Path(tmp_path / made).unlink()
        assert not current(), made


def test_a_wrong_count_stops_the_stage_except_in_a_test(run, corpus, tmp_path):
    (corpus / "list.txt").write_text("a\n")
    refused(run(CORPUS, "--corpus", "corpus"), "clips has 1, expected 2", "another one")
    assert not (tmp_path / "data/train").exists()
    assert run(CORPUS, "--corpus", "corpus", "--uncounted").returncode == 0


@pytest.mark.parametrize("count", [1, 2])
def test_packages(run, corpus, tmp_path, count):
    text = PACKAGES.format(more=', Package("two", "3", "1" * 64)' if count == 2 else "")
    debs = []
    for name, clip in zip(["one_1%3a2_all.deb", "two_3_all.deb"][:count], "ab", strict=False):
        data = (corpus / f"{clip}.wav").read_bytes()
        content = packages.deb({f"./usr/share/{clip}.wav": data})
        debs.append(packages.write(tmp_path / "debs" / name, content))
    digests = " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in debs)
    given = ["--package", debs[0]] if count == 1 else ["--packages", tmp_path / "debs"]
    # Without the digests of the miniatures: the pinned ones.
    refused(run(text, *given), "expected 0000")
    done = run(text, *given, "--sha256", digests)
    assert done.returncode == 0, done.stderr
    assert f"data/train: {count} utterances" in done.stdout
    assert run(text, *given, "--sha256", digests).stdout == "data: up to date\n"
    if count == 1:
        # A package that the user names is checked even if nothing is left to do.
        debs[0].write_bytes(b"other")
        refused(run(text, *given, "--sha256", digests), "is not one 1:2", "get it again")
    else:
        debs[1].unlink()
        (tmp_path / "data/.stamp.json").unlink()
        refused(run(text, *given, "--sha256", digests), "no two_3_all.deb in it")


def test_help_shows_the_options_of_the_kind_of_corpus(run):
    text = PACKAGES.format(more="")
    for shown, hidden, script in (
        ("--corpus --label", "--package", CORPUS),
        ("--package --downloads", "--corpus", text),
    ):
        said = run(script, "--help").stdout
        assert all(option in said for option in shown.split())
        assert hidden not in said
        assert "--sha256" not in said and "--uncounted" not in said
