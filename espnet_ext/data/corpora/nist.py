"""NIST's evaluation sets: references in stm files, two speakers on the channels of one call.

The formats are those of NIST's scoring toolkit (sctk, infmts.htm): a line of an stm file is
``file channel speaker start end [<labels>] words``, comments begin with ``;;``.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.text import collapse_blanks
from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8

_CHANNELS = {"A": "A", "B": "B", "1": "A", "2": "B"}
_UNSCORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
_GAP = "inter_segment_gap"  # a speaker's name in RT-03: time between the segments
_ASIDE = re.compile(r"</?[BE]_ASIDE>", re.IGNORECASE)
_OPTIONAL = re.compile(r"\(([^()]*)\)")
_ALTERNATIVES = re.compile(r"\{([^{}/]*)/[^{}]*\}")
_ID = re.compile(r"(.+)-([AB])_(\d{6,})-(\d{6,})")


@dataclass(frozen=True)
class Segment:
    """One line of an stm file."""

    file: str
    channel: str  # A or B
    start: float  # seconds
    end: float
    words: str  # with markings
    line: str  # for NIST's programs

    @property
    def speaker(self) -> str:
        """The side of the call."""
        return f"{self.file}-{self.channel}"

    @property
    def id(self) -> str:
        """The utterance's id, as in Kaldi; times are truncated to hundredths of a second."""
        return f"{self.speaker}_{int(self.start * 100):06d}-{int(self.end * 100):06d}"

    @property
    def is_scored(self) -> bool:
        """Whether NIST scores it."""
        return _UNSCORED not in self.words


def read_stm(path: Path) -> list[Segment]:
    """Read an stm file, with corrections of the published ones, which NIST's programs refuse.

    ``((`` becomes ``(``, marks of asides are removed (the words stay), channels 1 and 2 become A
    and B, and lines for the time between segments are left out.

    Raises:
        UserError: a wrong line, with its number.
    """
    return list(_segments(path))


def _segments(path: Path) -> Iterator[Segment]:
    for number, raw in _rows(path):
        line = _ASIDE.sub(" ", raw.replace("((", "("))
        fields = line.split(None, 5)
        try:
            file, channel, speaker, start, end = fields[:5]
            times = float(start), float(end)
        except ValueError:
            raise UserError(
                f"{path}: line {number} is no 'file channel speaker start end words'"
            ) from None
        if channel.upper() not in _CHANNELS:
            raise UserError(f"{path}: line {number}: channel {channel} is none of A, B, 1, 2")
        if not 0 <= times[0] < times[1] < math.inf:
            raise UserError(f"{path}: line {number}: no time from {start} s to {end} s")
        if speaker == _GAP:
            continue
        channel = _CHANNELS[channel.upper()]
        rest = collapse_blanks(fields[5]) if len(fields) == 6 else ""
        words = re.sub(r"^<[^>]*>", "", rest).strip()
        yield Segment(
            file, channel, *times, words, f"{file} {channel} {speaker} {start} {end} {rest}"
        )


def read_pem(path: Path) -> set[str]:
    """Read a partition (``file channel speaker start end``); return the ids of its segments."""
    found = set()
    for number, line in _rows(path):
        try:
            file, channel, _, start, end = line.split()[:5]
            times = float(start), float(end)
            if not 0 <= times[0] < times[1] < math.inf:
                raise ValueError
            segment = Segment(file, _CHANNELS[channel.upper()], *times, "", "")
        except (KeyError, ValueError):
            raise UserError(
                f"{path}: line {number} is no 'file channel speaker start end'"
            ) from None
        found.add(segment.id)
    return found


def read_comments(path: Path) -> list[str]:
    """Return the comments of an stm file; they define the labels of its lines for sclite."""
    return [line.strip() for line in _lines(path) if line.lstrip().startswith(";;")]


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip() and not line.lstrip().startswith(";;"):
            yield number, line


def _lines(path: Path) -> list[str]:
    return read_utf8(path).splitlines()


def reference_text(words: str) -> str:
    """Return the words of a segment in lower case, without NIST's markings.

    Optional words in parentheses (hesitations, fragments) and %words are removed if others are
    left; of alternatives ``{a / b}`` the first stays. NIST's scoring (``score.sctk``) knows all of
    these markings.
    """
    text = _ALTERNATIVES.sub(r" \1 ", words.lower())
    words_left = [word for word in _OPTIONAL.sub(" ", text).split() if not word.startswith("%")]
    if not words_left:
        optional = text.replace("(", " ").replace(")", " ").split()
        words_left = ["uh" if word.startswith("%") else word for word in optional]
    return " ".join(word for word in words_left if word != "@")


def clips(segments: Iterable[Segment], audio: Mapping[str, Path]) -> list[Clip]:
    """Return the scored segments as clips of their channel.

    Raises:
        UserError: a recording is not there.
    """
    found = []
    for segment in segments:
        text = reference_text(segment.words)
        if not segment.is_scored or not text:
            continue
        if segment.file not in audio:
            raise UserError(f"no audio file {segment.file}.sph, which the references name")
        found.append(
            Clip(
                id=segment.id,
                speaker=segment.speaker,
                source=audio[segment.file],
                start=segment.start,
                end=segment.end,
                text=text,
                channel="AB".index(segment.channel),
            )
        )
    return found


def sphere_files(folder: Path) -> dict[str, Path]:
    """Return the SPHERE files below a folder, by their names without suffix."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".sph")
    return {path.stem: path for path in found}


def stretch_of(utterance: str) -> tuple[str, str, float, float]:
    """Return (file, channel, start, end in seconds) of an utterance's id.

    Raises:
        UserError: the id is not of such a set.
    """
    found = _ID.fullmatch(utterance)
    if found is None:
        raise UserError(f"{utterance} is no id <file>-<A or B>_<start>-<end> of a NIST set")
    return found[1], found[2], int(found[3]) / 100, int(found[4]) / 100
