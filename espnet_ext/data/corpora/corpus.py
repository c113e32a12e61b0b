"""What the data stages of several corpora share: clips to FLAC, folds, counts that must hold."""

import argparse
import hashlib
import os
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet_ext.data import kaldi_dir
from espnet_ext.data.fetch import debian
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError, at_least, nearest
from espnet_ext.files import Stamp, content_key, scratch_folder, sha256_file, write_text

# What decodes and resamples; it is not imported where nothing is to do.
RESAMPLER = Path(kaldi_dir.__file__).with_name("audio.py")
# Modules that the data stage of every corpus depends on, for its stamp.
CODE = [__file__, str(RESAMPLER), str(kaldi_dir.__file__), str(debian.__file__)]


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file with its class or text: one utterance to be."""

    id: str
    speaker: str
    label: str
    source: Path
    start: float = 0.0  # seconds
    end: float | None = None  # None: to the end of the file
    text: str = ""
    translations: tuple[tuple[str, str], ...] = ()
    channel: int | None = None  # from 0; None: the mean of all


def convert(clips: Sequence[Clip], folder: Path, jobs: int) -> list[kaldi_dir.Utterance]:
    """Write the clips as 16 kHz mono FLAC into ``folder``; return utterances in their order.

    Channels are averaged unless a clip names one. A file that is there, whole, and was made of the
    same stretch of the same source by the same code is kept; one that was made so for a clip that
    is no more is removed.

    Raises:
        UserError: a source is missing, empty or cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = sha256_file(RESAMPLER)
    bar = {"total": len(clips), "desc": "audio", "unit": "clip", "mininterval": 1.0}
    with scratch_folder(folder) as scratch:
        tasks = [(clip, folder / f"{clip.id}.flac", scratch, code) for clip in clips]
        seconds = list(tqdm(map_processes(_convert, tasks, jobs), **bar))
    # Only what stands beside a note of ours: other files are the user's.
    for note in set(folder.glob("*.source")) - {_origin(path) for _, path, _, _ in tasks}:
        note.with_suffix(".flac").unlink(missing_ok=True)
        note.unlink()
    return [
        kaldi_dir.Utterance(
            clip.id, clip.speaker, clip.text, str(path), length, clip.label, clip.translations
        )
        for (clip, path, *_), length in zip(tasks, seconds, strict=True)
    ]


def convert_sets(
    sets: Mapping[str, Sequence[Clip]], folder: Path, jobs: int
) -> dict[str, list[kaldi_dir.Utterance]]:
    """Convert the clips of all sets as ``convert`` does; return the utterances of each."""
    clips = [clip for found in sets.values() for clip in found]
    utterances = iter(convert(clips, folder, jobs))
    return {name: [next(utterances) for _ in found] for name, found in sets.items()}


def _convert(task: tuple[Clip, Path, Path, str]) -> float:
    from espnet_ext.data import audio

    clip, path, scratch, code = task
    try:
        status = clip.source.stat()
        content = _content(clip.source, status.st_size, status.st_mtime_ns)
        key = f"{clip.source} {content} {clip.start} {clip.end} {code}"
        key += "" if clip.channel is None else f" {clip.channel}"
        made = hashlib.sha256(key.encode()).hexdigest()
        if _origin(path).is_file() and _origin(path).read_text() == made:
            seconds = audio.flac_seconds(path)
            if seconds is not None:
                return seconds
        if not status.st_size:
            raise UserError(f"{clip.id}: {clip.source}: empty audio file")
    except OSError as error:
        raise UserError(f"{clip.id}: cannot read {clip.source}: {error.strerror}") from None
    samples, rate = audio.read_stretch(
        clip.source, clip.id, clip.start, clip.end, channel=clip.channel
    )
    if len(samples) < audio.SHORTEST * rate:
        raise UserError(
            f"{clip.id}: {clip.source}: {len(samples)} samples from {clip.start} s on, "
            f"less than {audio.SHORTEST} s"
        )
    seconds = audio.write_flac(scratch / path.name, samples, rate)
    _origin(scratch / path.name).write_text(made)
    # What a crash of the machine cuts short, flac_seconds finds.
    for written in (path, _origin(path)):
        os.replace(scratch / written.name, written)
    return seconds


@lru_cache(maxsize=64)
def _content(source: Path, size: int, time: int) -> str:
    """The key of a source, which many clips may share: a call has a hundred utterances."""
    return content_key(source)


def _origin(path: Path) -> Path:
    """Where it stands what a FLAC file was made of."""
    return path.with_suffix(".source")


def write_folds(
    out: Path,
    split: str,
    folds: Mapping[str, Mapping[str, Sequence[kaldi_dir.Utterance]]],
    apart: str = "speaker",
    digests: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write <out>/<split>-<fold>/{train,dev,test} and the list of folds <out>/folds/<split>.

    Args:
        out: folder of the data directories.
        split: name of the way of splitting.
        folds: utterances by the name of the fold and the part.
        apart: what no two parts of a fold may share: speaker or text.
        digests: of the audio of every utterance, for stamps to notice other audio.

    Returns:
        The files written.

    Raises:
        UserError: two parts of a fold share a speaker (or text), an utterance is tested in
            two folds, or what ``write_data_dir`` refuses.
    """
    written, tested = [], set()
    for fold, parts in folds.items():
        owner: dict[str, str] = {}
        for part, utterances in parts.items():
            for key in {getattr(u, apart) for u in utterances}:
                if owner.setdefault(key, part) != part:
                    raise UserError(f"{split}-{fold}: {key} is in {owner[key]} and {part}")
            folder = out / f"{split}-{fold}" / part
            kaldi_dir.write_data_dir(folder, utterances)
            written += [folder / name for name in kaldi_dir.CLASS_FILES]
            if digests is not None:
                rows = (f"{name} {digests[name]}\n" for name in sorted(u.id for u in utterances))
                write_text(folder / kaldi_dir.AUDIO_DIGEST, "".join(rows))
                written.append(folder / kaldi_dir.AUDIO_DIGEST)
        for utterance in parts["test"]:
            if utterance.id in tested:
                raise UserError(f"{split}-{fold}: {utterance.id} is tested in another fold too")
            tested.add(utterance.id)
    listed = out / "folds" / split
    for old in read_list(listed):
        if old.removeprefix(f"{split}-") not in folds:
            shutil.rmtree(out / old, ignore_errors=True)
    write_text(listed, "".join(f"{split}-{fold}\n" for fold in folds))
    print(f"{listed}: {len(folds)} folds, {len(tested)} utterances tested")
    return [*written, listed]


def read_list(path: Path) -> list[str]:
    """Lines of a list of folds; empty if there is none."""
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def read_folds(data: Path, split: str) -> list[str]:
    """Names of the folds of a way of splitting, as sets are named: each has train, dev, test.

    Raises:
        UserError: no such split.
    """
    found = read_list(data / "folds" / split)
    if not found:
        known = [path.name for path in (data / "folds").glob("*")]
        raise UserError(f"no folds {nearest(split, known)} in {data}/folds; run stage 1")
    return found


def expect(what: str, expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raise UserError where a count is not the one that the corpus is known to have."""
    for name, count in expected.items():
        if found.get(name, 0) != count:
            raise UserError(
                f"{what}: {name} has {found.get(name, 0)}, expected {count}; "
                "the reader or a rule was changed, or the corpus is another one"
            )


def remove_leftovers(*folders: Path) -> None:
    """Remove what a killed run left half-written."""
    for folder in folders:
        for path in [*folder.glob(".tmp*"), *folder.glob(".apt-*")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def corpus_parser(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Options of the data stage of a corpus that the user has: ``folder`` says what to give."""
    parser = _parser(doc)
    parser.add_argument("--corpus", metavar="DIR", help=folder)
    # For tests on miniature trees, which have other counts.
    parser.add_argument("--uncounted", action="store_true", help=argparse.SUPPRESS)
    return parser


def package_parser(doc: str | None, several: bool = False) -> argparse.ArgumentParser:
    """Options of the data stage of a corpus in a package that is fetched, or in several."""
    parser = _parser(doc)
    parser.add_argument("--downloads", default="downloads", help="folder of what is fetched")
    if several:
        parser.add_argument(
            "--packages", metavar="DIR", help="folder of the .deb, if you have them"
        )
    else:
        parser.add_argument("--package", metavar="FILE", help="the .deb, if you have it already")
    # For tests with packages of their own; the counts are then not compared.
    parser.add_argument("--sha256", help=argparse.SUPPRESS)
    return parser


def _parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data", help="folder of the data directories")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes (default 2)")
    return parser


def corpus_folder(args: argparse.Namespace, needed: Iterable[str], what: str) -> Path:
    """Return the folder of a corpus.

    Raises:
        UserError: it was not given, or one of the paths ``needed`` is not in it.
    """
    if args.corpus is None:
        raise UserError(f"give --corpus DIR: {what}")
    root = Path(args.corpus)
    for name in needed:
        if not (root / name).exists():
            raise UserError(f"{root}: no {name} in it; --corpus is {what}")
    return root


def stamp_of(
    args: argparse.Namespace,
    code: Iterable[str],
    inputs: Iterable[Path],
    options: Iterable[str] = (),
) -> Stamp:
    """The stamp of a data stage over the files it reads, its own source and its own options."""
    settings: list[Any] = [args.out, os.fspath(args.corpus or ""), args.uncounted, *options]
    return Stamp(Path(args.out) / ".stamp.json", settings, [*CODE, *code, *map(str, inputs)])


def write_corpus(
    args: argparse.Namespace,
    stamp: Stamp,
    sets: Mapping[str, Sequence[kaldi_dir.Utterance]],
    folds: Mapping[str, Mapping[str, Mapping[str, Sequence[kaldi_dir.Utterance]]]] | None = None,
    apart: str = "speaker",
    overlapping: Container[str] = (),
    beside: Iterable[Path] = (),
) -> None:
    """Write the sets, then the folds of each way of splitting, then the stamp.

    The sets ``overlapping`` may hold texts of train; ``beside`` are files that the data stage has
    written itself.
    """
    out = Path(args.out)
    kaldi_dir.write_sets(out, sets, args.nj, overlapping)
    files = [out / name / file for name in sets for file in kaldi_dir.files_of(sets[name])]
    digests: dict[str, str] = {}
    for name in sets:
        digests |= kaldi_dir.read_table(out / name / kaldi_dir.AUDIO_DIGEST)
    for split, found in (folds or {}).items():
        files += write_folds(out, split, found, apart, digests)
    files += {Path(u.audio) for utterances in sets.values() for u in utterances}
    stamp.write(sorted([*files, *beside]))
