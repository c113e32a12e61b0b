"""The speech of the game "Beneath a Steel Sky", which has no transcript that can be read.

``sky.dsk`` holds all files of the game, ``sky.dnr`` says where: the number of entries, then for
each a number of two bytes, a place and a size of three, little-endian, with flags in the highest
bits. A speech clip is a header and 8-bit samples at 11,025 Hz, packed (``rnc``). The script of the
game is in a code that only the game's program has.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from espnet_ext.data.corpora.clips import Clip, Raw
from espnet_ext.data.corpora.rnc import unpack
from espnet_ext.data.corpora.stage import DataStage
from espnet_ext.data.fetch.debian import Package, unpack_member
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, atomic_path, read_json, write_json

PACKAGE = Package(
    name="beneath-a-steel-sky",
    version="0.0372-8",
    sha256="e2a25c880220c26a4dfd42904b878cc655afa1c72895f9c932befbd078622934",
)
FOLDER = "usr/share/scummvm/beneath-a-steel-sky"
SPEECH = range(50000, 59494)  # numbers of clips; beyond are music and sounds
RAW = Raw(11025, "PCM_U8")

_ENTRY = 8  # bytes
_FIELDS = ((0, 2), (2, 5), (5, 8))  # of an entry: number, place, size
_HEADER = 22  # bytes before the packed samples of a clip
_PLACE, _SIZE = (1 << 23) - 1, (1 << 22) - 1
_IN_BLOCKS = 1 << 23  # the place counts blocks of 16 bytes


class Entry(NamedTuple):
    """A clip on the disk: its number, and the bytes from ``start`` to ``stop``."""

    number: int
    disk: Path
    start: int
    stop: int


def clips(stage: DataStage) -> list[Clip]:
    """Fetch and unpack the package and its speech; return the clips by their numbers.

    Raises:
        UserError: what ``DataStage.fetch`` and ``unpacked`` raise.
    """
    package = stage.fetch(PACKAGE)
    directory, disk = (
        unpack_member(package, f"{FOLDER}/{name}", stage.downloads / name)
        for name in ("sky.dnr", "sky.dsk")
    )
    return unpacked(directory, disk, stage.downloads / "sky.pcm", stage.jobs)


def unpacked(directory: Path, disk: Path, target: Path, jobs: int) -> list[Clip]:
    """Write the samples of all speech clips into ``target``; return the clips by their numbers.

    A file next to it has their sizes; both stay as long as the disk does.

    Raises:
        UserError: a file is cut short or damaged.
    """
    entries = sorted(_entries(directory, disk))
    sizes = target.with_suffix(".json")
    stamp = Stamp(target.with_name(f".{target.name}.json"), [], [directory, disk])
    if not stamp.is_current():
        write_json(sizes, _unpack(entries, target, jobs))
        stamp.write([sizes], by_size=[target])
    ends = list(itertools.accumulate(read_json(sizes)))
    return [
        Clip(
            id=f"sky-{entry.number}",
            speaker="sky",
            source=target,
            raw=RAW,
            start=start / RAW.rate,
            end=end / RAW.rate,
        )
        for entry, start, end in zip(entries, [0, *ends], ends, strict=False)
    ]


def _unpack(entries: Sequence[Entry], target: Path, jobs: int) -> list[int]:
    """Write the samples of clips one after the other; return their sizes."""
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        bar = {"total": len(entries), "desc": "unpack", "unit": "clip", "mininterval": 1.0}
        return [stream.write(wave) for wave in tqdm(map_processes(_samples, entries, jobs), **bar)]


def _samples(entry: Entry) -> bytes:
    with entry.disk.open("rb") as stream:
        stream.seek(entry.start + _HEADER)
        packed = stream.read(entry.stop - entry.start - _HEADER)
    try:
        return unpack(packed)
    except UserError as error:
        raise UserError(f"{entry.disk}: clip {entry.number}: {error}") from None


def _entries(directory: Path, disk: Path) -> Iterator[Entry]:
    """Yield the speech clips of ``sky.dsk``."""
    content, end = directory.read_bytes(), disk.stat().st_size
    count = int.from_bytes(content[:4], "little")
    if len(content) < 4 + _ENTRY * count:
        raise UserError(f"{directory}: cut short")
    for k in range(4, 4 + _ENTRY * count, _ENTRY):
        row = content[k : k + _ENTRY]
        number, place, size = (int.from_bytes(row[a:b], "little") for a, b in _FIELDS)
        start = (place & _PLACE) * (16 if place & _IN_BLOCKS else 1)
        stop = start + (size & _SIZE)
        if number not in SPEECH:
            continue
        if stop > end:
            raise UserError(f"{disk}: clip {number} ends after the file; it is cut short")
        yield Entry(number, disk, start, stop)
