"""Clips: the utterances of a corpus, and their conversion to 16 kHz mono FLAC."""

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet_ext.data import kaldi_dir
from espnet_ext.data.kaldi_dir import Checked, Utterance
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError
from espnet_ext.files import quick_key, scratch_folder, sha256_file

# Decodes and resamples. It is not imported where nothing is to do.
AUDIO_CODE = Path(kaldi_dir.__file__).with_name("audio.py")


@dataclass(frozen=True)
class Raw:
    """Format of samples without a header.

    Attributes:
        rate: Hz.
        encoding: libsndfile's name of it: PCM_16, PCM_U8, ULAW, ALAW, GSM610, ...
        channels: how many are interleaved.
        endian: LITTLE or BIG.
    """

    rate: int
    encoding: str = "PCM_16"
    channels: int = 1
    endian: str = "LITTLE"

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``soundfile.SoundFile``."""
        sizes = {"samplerate": self.rate, "channels": self.channels}
        return {"format": "RAW", "subtype": self.encoding, "endian": self.endian, **sizes}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An utterance of a corpus: whose it is, where its audio is, what it is labelled with.

    The audio is a whole file of any format that libsndfile reads; or a stretch of it, or one of its
    channels; or a file inside another file; or samples without a header.
    """

    id: str  # begins with the speaker
    speaker: str
    source: Path
    text: str = ""
    label: str = ""
    translations: tuple[tuple[str, str], ...] = ()  # (language, text)
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: the end of the file
    channel: int | None = None  # from 0; None: the mean of all
    span: tuple[int, int] | None = None  # offset and length, bytes, of a mono file in the source
    rate: int | None = None  # Hz that the file in the source must have; None: any
    raw: Raw | None = None  # of a source without a header


def convert(
    clips: Sequence[Clip],
    folder: Path,
    jobs: int,
    keep_others: bool = False,
    checked: Checked | None = None,
) -> list[Utterance]:
    """Write clips as FLAC into ``folder``; return utterances in their order.

    A file is kept if it is whole and was made of the same audio by the same code: a file .source
    says so. Files of other clips, made before, are removed unless ``keep_others``. Files in
    ``checked`` are known to be whole.

    Raises:
        UserError: clips whose sources are missing, cut short, silent, or cannot be decoded: their
            number, and the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code, known = sha256_file(AUDIO_CODE), checked or {}
    for clip in clips:
        kaldi_dir.check_id(clip.id, str(folder))
    paths = [folder / f"{clip.id}.flac" for clip in clips]
    bar = {"total": len(clips), "desc": "audio", "unit": "clip", "mininterval": 1.0}
    with scratch_folder(folder) as scratch:
        tasks = [
            (clip, path, scratch, code, known[str(path)][1] if str(path) in known else None)
            for clip, path in zip(clips, paths, strict=True)
        ]
        made = list(tqdm(map_processes(_converted, tasks, jobs), **bar))
    faults = [found for found in made if isinstance(found, str)]
    if faults:
        number = "" if len(faults) == 1 else f"{len(faults)} clips cannot be used; the first: "
        raise UserError(number + faults[0])
    seconds = [found for found in made if not isinstance(found, str)]
    if not keep_others:
        remove_others(folder, set(paths))
    return [
        Utterance(c.id, c.speaker, c.text, str(path), length, c.label, c.translations)
        for c, path, length in zip(clips, paths, seconds, strict=True)
    ]


def convert_sets(
    sets: Mapping[str, Iterable[Clip]],
    folder: Path,
    jobs: int,
    checked: Checked | None = None,
) -> dict[str, list[Utterance]]:
    """Convert the clips of several sets, which may share clips; return the utterances of each.

    A clip of several sets has one file, and may have another label in each.

    Raises:
        UserError: what ``distinct`` and ``convert`` raise.
    """
    made = {u.id: u for u in convert(distinct(sets.values()), folder, jobs, checked=checked)}
    return {
        name: [
            Utterance(c.id, c.speaker, c.text, u.audio, u.seconds, c.label, c.translations)
            for c in found
            if (u := made[c.id])
        ]
        for name, found in sets.items()
    }


def distinct(sets: Iterable[Iterable[Clip]]) -> list[Clip]:
    """The clips of several sets, each once.

    Raises:
        UserError: two clips of different audio have one id.
    """
    clips: dict[str, Clip] = {}
    for clip in (clip for found in sets for clip in found):
        first = clips.setdefault(clip.id, clip)
        if (first.source, first.start, first.span) != (clip.source, clip.start, clip.span):
            raise UserError(f"{clip.id} is two clips, of {first.source} and of {clip.source}")
    return list(clips.values())


def remove_others(folder: Path, kept: Container[Path]) -> None:
    """Remove the files that ``convert`` wrote, but ``kept``; other files are the user's."""
    for note in folder.glob("*.source"):
        path = note.with_suffix(".flac")
        if path not in kept:
            path.unlink(missing_ok=True)
            note.unlink()


type _Task = tuple[Clip, Path, Path, str, float | None]  # the last: seconds, if known


def _converted(task: _Task) -> float | str:
    """Convert a clip; return its seconds, or why it cannot be used."""
    try:
        return _convert(task)
    except UserError as error:
        return str(error)


def _convert(task: _Task) -> float:
    from espnet_ext.data import audio

    clip, path, scratch, code, known = task
    note = path.with_suffix(".source")
    made_of = _origin(clip, code)
    if note.is_file() and note.read_text() == made_of:
        seconds = audio.flac_seconds(path) if known is None else known
        if seconds is not None:
            return seconds
    if clip.span is not None:
        name = f"{clip.source}: {clip.id}"
        samples, rate = audio.decode(read_span(clip.source, *clip.span), name, clip.rate)
    else:
        if not clip.source.stat().st_size:
            raise UserError(f"{clip.id}: {clip.source}: empty audio file")
        raw = None if clip.raw is None else clip.raw.options
        samples, rate = audio.read_stretch(
            clip.source, clip.id, clip.start, clip.end, clip.channel, raw
        )
    if len(samples) < audio.SHORTEST * rate:
        raise UserError(
            f"{clip.id}: {clip.source}: {len(samples)} samples from {clip.start} s on, "
            f"less than {audio.SHORTEST} s"
        )
    if not samples.any():
        raise UserError(f"{clip.id}: {clip.source}: digital silence")
    seconds = audio.write_flac(scratch / path.name, samples, rate)
    (scratch / note.name).write_text(made_of)
    # A crash of the machine may cut a file short; flac_seconds finds that.
    for written in (path, note):
        os.replace(scratch / written.name, written)
    return seconds


def _origin(clip: Clip, code: str) -> str:
    """Return a digest of what a FLAC file is made of, and by which code."""
    try:
        if clip.span is not None:
            content = hashlib.sha256(read_span(clip.source, *clip.span)).hexdigest()
        else:
            clip.source.stat()  # an error, where quick_key says "absent"
            content = quick_key(clip.source)  # computed once for the many clips of a source
    except OSError as error:
        raise UserError(f"{clip.id}: cannot read {clip.source}: {error.strerror}") from None
    raw = None if clip.raw is None else astuple(clip.raw)
    key = [str(clip.source), content, clip.start, clip.end, clip.channel, clip.rate, raw, code]
    return hashlib.sha256(repr(key).encode()).hexdigest()


def read_span(path: str | Path, offset: int, length: int) -> bytes:
    """Return ``length`` bytes of a file from ``offset``."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)
