"""Scoring by NIST's toolkit: what it is given, what is read of it; a script stands in for it."""

import os

import pytest

from espnet_ext.errors import UserError
from espnet_ext.score.sctk import Counts, ctm_lines, score_hub, total

TEXTS = {"sw1-A_000100-000200": "uh it is th- so", "sw1-A_000000-000100": "yes"}
# Writes the sums of a report of sclite, or complains.
STAND_IN = """#!/bin/sh
[ -s hyp.ctm ] || { echo 'no words' >&2; exit 1; }
echo "$@" > asked
echo '| Sum |    2      5 |    2     1     1     3     5     2 |' > hyp.ctm.filt.raw
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Score texts; the program ``hubscr.pl`` is a script in ``bin``."""
    for name in ("a.stm", "a.glm"):
        (tmp_path / name).write_text(name)
    program = tmp_path / "bin/hubscr.pl"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    out = tmp_path / "out"
    return out, lambda texts: score_hub(texts, tmp_path / "a.stm", tmp_path / "a.glm", out)


def test_words_share_the_time_of_their_utterance():
    """Hesitations and fragments, which the references leave to the speaker, are gone."""
    assert ctm_lines(TEXTS) == [
        "sw1 A 0.000 1.000 yes\n",
        "sw1 A 1.000 0.333 it\n",
        "sw1 A 1.333 0.333 is\n",
        "sw1 A 1.667 0.333 so\n",
    ]
    with pytest.raises(UserError, match="u1 is no id"):
        ctm_lines({"u1": "yes"})


def test_sums_of_the_report_are_read_and_added(hub):
    folder, score = hub
    found = score(TEXTS)
    assert found == Counts(words=5, substitutions=1, deletions=1, insertions=3)
    assert total([found, found]) == Counts(10, 2, 2, 6) and found.rate == 1.0
    assert (folder / "ref.stm").read_text() == "a.stm"
    assert (folder / "hyp.ctm").read_text() == "".join(ctm_lines(TEXTS))
    assert "-h hub5 -g set.glm -r ref.stm hyp.ctm" in (folder / "asked").read_text()


def test_what_it_rejects_leaves_the_old_report(hub):
    folder, score = hub
    score(TEXTS)
    with pytest.raises(UserError, match=r"hubscr\.pl rejects .*a\.stm: no words$"):
        score({})
    assert (folder / "hyp.ctm.filt.raw").is_file()


def test_a_machine_without_it_is_told_its_package(hub, monkeypatch):
    _, score = hub
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(UserError, match=r"no hubscr\.pl here; .*apt-get install sctk"):
        score(TEXTS)
