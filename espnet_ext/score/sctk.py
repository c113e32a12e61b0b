"""Scoring by NIST's toolkit (Debian package sctk) against the references of its evaluations.

Published error rates of Hub5 and RT tests are computed by it: a glm file maps contractions and
spellings, hesitations and fragments are optional, and of alternatives any counts.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.corpora.nist import stretch_of
from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path

_DEBIAN = Path("/usr/lib/sctk/bin")
# Optional in the references: a system that leaves them out loses nothing, one that has them at the
# wrong place loses a word. They are removed from hypotheses, as in Kaldi's scoring of these sets.
HESITATIONS = frozenset("uh um eh mm hm ah huh ha er oof hee ach eee ew".split())


@dataclass(frozen=True)
class Counts:
    """Words of the references and errors in the hypotheses."""

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def rate(self) -> float:
        """Errors over words, as a fraction."""
        return (self.substitutions + self.deletions + self.insertions) / self.words

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.words + other.words,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def ctm_lines(hypotheses: Mapping[str, str]) -> list[str]:
    """Return hypotheses as lines of a ctm file: ``file channel start seconds word``.

    Words share the time of their utterance evenly, which is enough to find their segment.

    Args:
        hypotheses: texts by ids that hold the recording, the channel and the time.

    Raises:
        UserError: an id that does not.
    """
    rows = []
    for utterance, text in hypotheses.items():
        file, channel, start, end = stretch_of(utterance)
        words = [w for w in text.split() if w.lower() not in HESITATIONS and not w.endswith("-")]
        length = (end - start) / max(1, len(words))
        for n, word in enumerate(words):
            rows.append((file, channel, start + n * length, length, word))
    return [f"{f} {c} {s:.3f} {length:.3f} {word}\n" for f, c, s, length, word in sorted(rows)]


def score_hub(hypotheses: Mapping[str, str], stm: Path, glm: Path, folder: Path) -> Counts:
    """Score hypotheses with hubscr.pl; its reports go to ``folder``, which is replaced whole.

    Raises:
        UserError: the toolkit is not installed, or rejects the files; says why.
    """
    program = _program("hubscr.pl")
    with atomic_path(folder) as made:
        made.mkdir(parents=True)
        shutil.copy(stm, made / "ref.stm")
        shutil.copy(glm, made / "set.glm")
        (made / "hyp.ctm").write_text("".join(ctm_lines(hypotheses)), encoding="utf-8")
        command = [program, "-p", str(Path(program).resolve().parent), "-V", "-l", "english"]
        command += ["-h", "hub5", "-g", "set.glm", "-r", "ref.stm", "hyp.ctm"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise UserError(f"hubscr.pl rejects {stm}: {(lines or ['no message'])[0]}")
        return _sum(made / "hyp.ctm.filt.raw")


def _sum(path: Path) -> Counts:
    """Read the row of sums of sclite's raw report: | Sum | # Snt # Wrd | Corr Sub Del Ins ..."""
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.replace("|", " ").split()
        if cells[:1] == ["Sum"]:
            _, words, _, substitutions, deletions, insertions = map(int, cells[1:7])
            return Counts(words, substitutions, deletions, insertions)
    raise UserError(f"{path}: no row of sums in this report of sclite")


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(_DEBIAN))
    if found is None:
        raise UserError(f"no {name} here; install NIST's toolkit: apt-get install sctk")
    return found


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts of several sets."""
    return sum(counts, Counts(0, 0, 0, 0))
