"""Stages 1 and 9 of Switchboard's recipe, on miniatures of the releases."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from espnet_ext.data.corpora.nist import reference_text
from espnet_ext.data.kaldi_dir import read_table, validate_data_dir
from tests.fixtures import switchboard
from tests.fixtures.data_stage import ROOT, refused, run

RECIPE = "swbd/asr1"


def given(tmp_path, *tests):
    """Words for the data stage: a corpus of three calls, four utterances for dev, and tests."""
    root = switchboard.switchboard(tmp_path / "LDC97S62")
    words = ["--corpus", root, "--uncounted", "--dev", "4"]
    if "eval2000" in tests:
        audio, text = switchboard.eval2000(tmp_path)
        words += ["--eval2000", audio, "--eval2000_text", text]
    if "rt02" in tests:
        words += ["--rt02", switchboard.rt02(tmp_path / "LDC2004S11")]
    if "rt03" in tests:
        words += ["--rt03", switchboard.rt03(tmp_path / "LDC2007S10")]
    return words


def prepared(folder, words):
    done = run(RECIPE, folder, *words)
    assert done.returncode == 0, done.stderr
    assert "up to date" in run(RECIPE, folder, *words).stdout
    sets = sorted(path.parent for path in (folder / "data").glob("*/wav.scp"))
    return {path.name: validate_data_dir(path, root=folder) for path in sets}


def pitch(path):
    """The strongest frequency, Hz."""
    samples, rate = soundfile.read(path)
    assert rate == 16000
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


def test_each_release_must_be_named(tmp_path):
    refused(run(RECIPE, tmp_path), "give --corpus DIR", "LDC97S62")
    refused(run(RECIPE, tmp_path, "--corpus", tmp_path), "--transcripts DIR")
    words = given(tmp_path)
    refused(run(RECIPE, tmp_path, *words, "--eval2000", tmp_path), "go together")
    refused(run(RECIPE, tmp_path, *words, "--rt02", tmp_path), "0 stm files", "LDC2004S11")
    refused(run(RECIPE, tmp_path, *words, "--rt03", tmp_path), "LDC2007S10")
    assert not (tmp_path / "data").exists()


def test_training_data(tmp_path):
    sets = prepared(tmp_path, given(tmp_path))
    spoken = [text for _, text in switchboard.LINES if text]
    # Three calls of two sides; the first four utterances are dev, which ends in the side A.
    assert {name: len(us) for name, us in sets.items()} == {"dev": 4, "train": 20}
    assert [u.text for u in sets["dev"]] == spoken
    # From 3.377625 s to 4.277625 s, in hundredths.
    assert sets["dev"][0].id == "sw02001-A_000338-000428"
    assert {u.speaker for u in sets["dev"]} == {"sw02001-A"}
    assert sets["dev"][0].seconds == pytest.approx(0.9)
    assert len({u.speaker for u in sets["train"]}) == 5


def test_each_side_is_its_own_channel(tmp_path):
    sets = prepared(tmp_path, given(tmp_path, "eval2000"))
    by_speaker = {u.speaker: u for us in sets.values() for u in us}
    for speaker, expected in (
        ("sw02001-A", 300),
        ("sw02001-B", 900),
        ("sw04940-B", 980),
        ("en_4156-A", 500),
        ("sw_4390-B", 600),
    ):
        assert pitch(tmp_path / by_speaker[speaker].audio) == pytest.approx(expected, abs=3)


def test_no_text_is_trained_on_more_than_300_times(tmp_path):
    words = given(tmp_path)
    folder = tmp_path / "LDC97S62/swb_ms98_transcriptions/20/2005"
    rows = [f"sw2005A-ms98-a-{n:04} {n / 50:.6f} {n / 50 + 0.3:.6f} yeah" for n in range(1, 320)]
    (folder / "sw2005A-ms98-a-trans.text").write_text("\n".join(rows) + "\n")
    sets = prepared(tmp_path, words)
    said = [u.id for u in sets["train"] if u.text == "yeah"]
    assert len(said) == 300
    assert said[-1] == "sw02005-A_000598-000628"  # the first 300 in the order of ids


def test_tests_are_split_into_their_halves(tmp_path):
    words = given(tmp_path, "eval2000", "rt02", "rt03")
    sets = prepared(tmp_path, words)
    found = {name: {u.id: u.text for u in us} for name, us in sets.items()}
    assert found["eval2000_callhm"] == {
        "en_4156-A_000056-000177": "he is a police officer",
        "en_4156-B_000206-000327": "uh-huh that's yeah right",
        # Nothing but a hesitation: decoded all the same. 4.77 s, cut off as awk does in Kaldi.
        "en_4156-A_000357-000476": "uh",
    }
    assert {name.partition("-")[0] for name in found["eval2000_swbd"]} == {"sw_4390"}
    assert found["rt03_fsh"] == {
        "fsh_60262-A_000050-000150": "oh yeah i know",
        "fsh_60262-B_000200-000350": "so do i",
    }
    assert len(found["rt03_swbd"]) == 2
    assert found["rt02"] == {"sw_30001-A_000050-000250": "that is all"}
    stm = (tmp_path / "data/nist/eval2000_swbd.stm").read_text()
    assert "sw_4390 A" in stm and "en_4156" not in stm and ';; LABEL "sw"' in stm
    assert "((" not in stm and "ASIDE" not in stm and "IGNORE_TIME_SEGMENT_IN_SCORING" in stm
    stm = (tmp_path / "data/nist/rt03_fsh.stm").read_text()
    assert "fsh_60262 B" in stm and "inter_segment_gap" not in stm
    (tmp_path / "data/nist/rt02.glm").unlink()
    assert "up to date" not in run(RECIPE, tmp_path, *words).stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("(%HESITATION) WELL (HO-) HOME", "well home"),
        ("{IT'S / IT IS} FINE", "it's fine"),
        ("{@ / UH} SO", "so"),
        ("%UH SO", "so"),
        ("(YOU KNOW)", "you know"),
        ("(%UH)", "uh"),
        ("", ""),
    ],
)
def test_markings_of_references(words, text):
    assert reference_text(words) == text


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda r: (r / "swb1_d2/data/sw02005.sph").unlink(), "no sw02005.sph"),
        (
            lambda r: edit(
                r / "swb1_d1/data/sw02001.sph", b"-s4 ulaw", b"-s26 ulaw,embedded-shorten-v2.00"
            ),
            "sph2pipe -f sph FILE NEW",
        ),
        (lambda r: switchboard.call(r / "swb1_d1/data/sw02001.sph", (300.0,)), "no channel 2"),
        (lambda r: (r / "swb1_d1/data/sw02001.sph").write_bytes(b"x"), "cannot decode"),
        (lambda r: shutil.rmtree(r / "swb_ms98_transcriptions/"), "openslr.org/5"),
        (
            lambda r: edit(
                r / "swb_ms98_transcriptions/20/2001/sw2001A-ms98-a-trans.text",
                b"a-0003 3.377625",
                b"a-0003 three",
            ),
            "line 3 is no",
        ),
    ],
)
def test_faults_of_the_corpus(tmp_path, fault, message):
    words = given(tmp_path)
    fault(tmp_path / "LDC97S62")
    refused(run(RECIPE, tmp_path, *words), message)
    assert not (tmp_path / "data/train").exists()


def test_the_corpus_must_be_whole(tmp_path):
    words = [word for word in given(tmp_path, "eval2000") if word != "--uncounted"]
    refused(run(RECIPE, tmp_path, *words), "3 files sw0NNNN.sph; a release has 2435 or 2438")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("hub5e_00/english/hub5e_00.pem", b"0.57 1.77", b"0.58 1.77", "only one of them has"),
        ("hub5e_00/english/hub5e_00.pem", b"A unknown", b"C unknown", "line 2 is no"),
        ("hub5e_00/english/en_4156.sph", None, None, "no audio file en_4156.sph"),
        ("stm", b"sw_4390 A sw_4390_A 0.57 1.77", b"sw_4390 A 0.57 1.77", "is no 'file channel"),
        ("stm", b"sw_4390 A sw_4390_A 0.57", b"sw_4390 C sw_4390_A 0.57", "channel C is none"),
        ("stm", b"0.57 1.77", b"1.77 0.57", "no time from 1.77 s to 0.57 s"),
        ("stm", b"sw_4390", b"xx_4390", "none of sw, en_*"),
    ],
)
def test_faults_of_a_test_set(tmp_path, file, old, new, message):
    words = given(tmp_path, "eval2000")
    stm = "LDC2002T43/2000_hub5_eng_eval_tr/reference/hub5e00.english.000405.stm"
    path = tmp_path / (stm if file == "stm" else file)
    if old is None:
        path.unlink()
    else:
        edit(path, old, new)
        if b"xx" in new:
            edit(tmp_path / "hub5e_00/english/hub5e_00.pem", old, new)
    refused(run(RECIPE, tmp_path, *words), message)
    assert not (tmp_path / "data/train").exists()


def scored(folder, *words):
    return subprocess.run(
        [sys.executable, ROOT / "egs" / RECIPE / "local/score.py", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_scoring_by_nists_toolkit(tmp_path):
    if shutil.which("hubscr.pl", path="/usr/lib/sctk/bin:/usr/bin") is None:
        pytest.skip("NIST's programs are not installed (Debian package sctk)")
    prepared(tmp_path, given(tmp_path, "eval2000"))
    (tmp_path / "conf").mkdir()
    config = tmp_path / "conf/train_a_xs.yaml"
    config.write_text(
        json.dumps({"encoder": "conformer", "recipe": {"decode": {"ctc_greedy": {}}}})
    )
    heard = {
        # A contraction, another back-channel and another alternative count as right.
        "swbd": ["uh he is a police officer", "mhm that is yes right", "um"],
        "callhm": ["he was a police officer", "uh-huh right", ""],
    }
    for half, texts in heard.items():
        name = f"eval2000_{half}"
        ids = sorted(read_table(tmp_path / f"data/{name}/text"), key=lambda i: i[-13:])
        text = tmp_path / f"exp/a_xs/decode/merged/ctc_greedy/{name}/text"
        text.parent.mkdir(parents=True)
        lines = (f"{i} {t}".strip() + "\n" for i, t in sorted(zip(ids, texts, strict=True)))
        text.write_text("".join(lines))
    done = scored(tmp_path, config, "--sets", "eval2000_swbd eval2000_callhm")
    assert done.returncode == 0, done.stderr
    first, second, both = done.stdout.splitlines()
    assert first.startswith("eval2000_swbd ctc_greedy: WER 0.0 % (0 S, 0 I, 0 D of ")
    # was; that's and yeah are gone
    assert "(1 S, 0 I, 2 D of " in second
    assert both.startswith("eval2000 ctc_greedy: WER ") and "(1 S, 0 I, 2 D of " in both
    assert (tmp_path / "exp/a_xs/nist/merged/ctc_greedy/eval2000_swbd/hyp.ctm.filt.sys").is_file()
    done = scored(tmp_path, config, "--sets", "rt02")
    refused_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "run stage 1 with the folder of rt02" in refused_line
