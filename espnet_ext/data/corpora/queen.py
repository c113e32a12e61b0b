"""The speech and the script of the game "Flight of the Amazon Queen", read from its container.

The container ``queen.1c`` is the game as ScummVM repacks it: a directory, then the files. Speech
clips (``*.SB``) are bare MPEG layer III streams at 11,025 Hz, one channel. A clip's name follows
from the place of its sentence in the script, as in ScummVM's queen engine (talk.cpp, cutaway.cpp,
logic.cpp). Integers are big-endian. Nothing here imports torch.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.corpora.clips import read_span
from espnet_ext.data.corpora.stage import DataStage
from espnet_ext.data.fetch.debian import Package, unpack_member
from espnet_ext.data.text import without_asides
from espnet_ext.errors import UserError

PACKAGE = Package(
    name="flight-of-the-amazon-queen",
    version="1.0.0-9",
    sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
)
MEMBER = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
SAMPLE_RATE = 11025  # Hz, of every clip
UNKNOWN = "unknown"

# Labels of the script that are other names of a voice: dialogue files have short names, and some
# clips of the opening scene are stored twice under two labels.
ALIASES = {
    "and": "anderson",
    "azura": "princess azura",
    "bob": "trader bob",
    "dog": "guard dog",
    "joe king": "joe",
    "prin": "princess azura",
    "sec": "secretary",
    "showeram": "showering amazon",
    "wedge": "wedgewood",
    "witch": "witch doctor",
}

# Labels that name an object or a caption of a cut scene, not the voice that is heard.
NOT_VOICES = frozenset(
    "text note path smoke telephone buttons torch door rock".split() + ["azura obj", "lily pad"]
)

_COMMAND = re.compile(r"\*(XY.{11}|..)", re.DOTALL)
_SILENT_COMMANDS = ("GD", "GM")  # Joe reaches for something; nothing is voiced
_MP3 = 1  # how the clips are compressed; ScummVM's other types are 0 none, 2 Vorbis, 3 FLAC
_FILE_HEADER = 20  # bytes before the contents of .DOG, .CUT and .JAS files
_JOE = "Joe"


@dataclass(frozen=True)
class Sentence:
    """A voiced sentence of the script, or a part of one."""

    name: str  # of its file, without .SB
    speaker: str  # the script's label
    text: str  # cased and punctuated
    span: tuple[int, int]  # offset and length of its MP3 in the container, bytes

    @property
    def voice(self) -> str:
        """The speaker's id: lower case, aliases merged, no blanks."""
        label = " ".join(self.speaker.lower().split())
        return re.sub(r"[^a-z0-9]+", "_", ALIASES.get(label, label)).strip("_") or UNKNOWN

    @property
    def is_voice(self) -> bool:
        """False if the label names a thing on the screen."""
        return " ".join(self.speaker.lower().split()) not in NOT_VOICES


class Container:
    """The directory of ``queen.1c``; ``read(name)`` returns one file's bytes.

    Raises:
        UserError: the file is not such a container, holds other than MP3, or is cut short.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as stream:
            header = stream.read(15)
            if len(header) < 15 or header[:4] != b"QTBL":
                raise UserError(f"{path}: not a container of the game (no QTBL at its start)")
            compression, count = struct.unpack(">BH", header[12:15])
            if compression != _MP3:
                raise UserError(f"{path}: its speech is not MP3 (type {compression}, not {_MP3})")
            table = stream.read(21 * count)
        if len(table) < 21 * count:
            raise UserError(f"{path}: cut short in its directory; fetch the package again")
        self.entries: dict[str, tuple[int, int]] = {}
        for raw, _bundle, offset, length in struct.iter_unpack(">12sBII", table):
            name = raw.split(b"\0")[0].decode("ascii", "replace").upper()
            if offset + length > size:
                raise UserError(f"{path}: cut short, {name} is missing; fetch the package again")
            self.entries[name] = (offset, length)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        if name not in self.entries:
            raise UserError(f"{self.path}: holds no file {name}")
        return read_span(self.path, *self.entries[name])

    def names(self, suffix: str) -> list[str]:
        """Return the sorted names that end in ``suffix``, such as ``.SB``."""
        return sorted(name for name in self.entries if name.endswith(suffix))


def open_container(stage: DataStage) -> Container:
    """Fetch and unpack the package; return the container in it."""
    return Container(unpack_member(stage.fetch(PACKAGE), MEMBER, stage.downloads / "queen.1c"))


def read_sentences(container: Container) -> list[Sentence]:
    """Return the clips that have a text, sorted by name, each once.

    Raises:
        UserError: a script file is damaged.
    """
    found: dict[str, Sentence] = {}
    objects, stock = _read_master(container)
    sources: list[tuple[str, Iterator[tuple[str, str, str]]]] = [("QUEEN2.JAS", iter(stock))]
    sources += [(name, _dialogue(name, container)) for name in container.names(".DOG")]
    sources += [(name, _cut_scene(name, container, objects)) for name in container.names(".CUT")]
    for source, sentences in sources:
        try:
            for prefix, speaker, sentence in sentences:
                for name, text in segments(prefix, sentence):
                    span = container.entries.get(f"{name}.SB")
                    if span is not None and text.strip():
                        found.setdefault(name, Sentence(name, speaker, without_asides(text), span))
        except (struct.error, IndexError):
            raise UserError(f"{container.path}: {source} is damaged; get the file again") from None
    return [found[name] for name in sorted(found)]


def segments(prefix: str, sentence: str) -> list[tuple[str, str]]:
    """Cut a sentence at its ``*XX`` commands into (clip name, text) pairs.

    The k-th segment, from 1, belongs to the clip ``prefix`` + k in hexadecimal. A command ends the
    segment before it; ``*GD`` and ``*GM`` leave that segment unvoiced.
    """
    result = []
    start = 0
    index = 1
    for match in _COMMAND.finditer(sentence):
        if match.group(1) not in _SILENT_COMMANDS:
            result.append((f"{prefix}{index:x}".upper(), sentence[start : match.start()]))
        index += 1
        start = match.end()
    result.append((f"{prefix}{index:x}".upper(), sentence[start:]))
    return result


def _text(raw: bytes) -> str:
    return raw.decode("cp437")


def _string(data: bytes, offset: int, align: int) -> tuple[str, int]:
    """Read a length byte and its string; return it and the offset of what follows."""
    length = data[offset]
    offset += 1
    if offset + length > len(data):
        raise IndexError(offset)
    value = _text(data[offset : offset + length])
    if length:
        offset = -(-(offset + length) // align) * align
    return value, offset


def _read_master(container: Container) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Return the names of the objects (index 0 unused) and Joe's stock sentences."""
    data = container.read("QUEEN.JAS")[_FILE_HEADER:]
    lines = _text(container.read("QUEEN2.JAS")).splitlines()
    try:
        _rooms, n_names, n_objects, n_descriptions = struct.unpack_from(">4H", data, 0)
        indices = [struct.unpack_from(">h", data, 8 + 16 * i)[0] for i in range(n_objects)]
    except struct.error:
        raise UserError(f"{container.path}: QUEEN.JAS is damaged; get the file again") from None
    names = ["", *lines[n_descriptions : n_descriptions + n_names]]
    first_reply = n_descriptions + n_names + _rooms + 12  # 12 verbs lie between
    replies = lines[first_reply : first_reply + 40]
    objects = [""] + [names[abs(i)] if abs(i) < len(names) else "" for i in indices]
    stock = [(f"JOE{i:04d}", _JOE, line) for i, line in enumerate(replies, 1)]
    for i, line in enumerate(lines[:n_descriptions], 1):
        stock.append((f"JOE{i + 40:04d}", _JOE, line))
    return objects, stock


def _dialogue(name: str, container: Container) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix, speaker, sentence) of a ``.DOG`` file."""
    data = container.read(name)[_FILE_HEADER:]
    levels, _unique, talk_key, n_joe, n_other = struct.unpack_from(">5h", data, 0)
    at_other, _cutaway, at_second = struct.unpack_from(">3H", data, 22)
    other = name.split(".")[0].rstrip("0123456789")
    for who, speaker, offset, count in (
        ("J", _JOE, 32 + 96 * abs(levels), n_joe),
        ("P", other, at_other, n_other),
    ):
        for i in range(count):
            (ident,) = struct.unpack_from(">h", data, offset + 2)
            sentence, offset = _string(data, offset + 4, 4)
            key = f"{talk_key:2d}{ident & 0xFFFF:4x}{who}"
            if who == "J" and i == 0 and ident == 0:
                key = f"{talk_key:2d}SSSSJ"
            yield key.replace(" ", "0").upper(), speaker, sentence
    if at_second:
        offset = at_second
        for who, speaker in (("P", other), ("J", _JOE)):
            sentence, offset = _string(data, offset, 2)
            yield f"{talk_key:2d}XXXX{who}".replace(" ", "0"), speaker, sentence


def _cut_scene(
    name: str, container: Container, objects: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix, speaker, sentence) of a ``.CUT`` file."""
    data = container.read(name)[_FILE_HEADER:]
    (count,) = struct.unpack_from(">h", data, 2)
    (at_sentences,) = struct.unpack_from(">H", data, 8)
    stem = name.split(".")[0].ljust(5, "_")
    offset = 12
    _entry, sentence_at = _string(data, at_sentences, 2)
    for i in range(1, abs(count) + 1):
        record = struct.unpack_from(">17h", data, offset)
        (people,) = struct.unpack_from(">H", data, offset + 34)
        offset += 36 + 2 * people
        if _is_animation(record):
            while struct.unpack_from(">h", data, offset)[0] != -2:
                offset += 20
            offset += 2
        sentence, sentence_at = _string(data, sentence_at, 2)
        who = record[0]
        if who == 0:
            speaker = _JOE
        elif who > 0:
            speaker = objects[who] or UNKNOWN
        else:
            speaker = "text"
        yield f"{stem}{i:02d}", speaker, sentence


def _is_animation(record: tuple[int, ...]) -> bool:
    who, animation_list, execute, from_object = record[0], record[4], record[5], record[12]
    if not execute or from_object > 0 or who in (-2, -3, -4):
        return False
    return bool(animation_list) or who == -1
