"""What the data stages of several corpora share: clips to FLAC, folds, counts that must hold."""

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet_ext.data import kaldi_dir
from espnet_ext.data.parallel import map_processes
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import Stamp, content_key, write_text


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file with its class: one utterance to be."""

    id: str
    speaker: str
    label: str
    source: Path
    start: float = 0.0  # seconds
    end: float | None = None  # None: to the end of the file


def convert(clips: Sequence[Clip], folder: Path, jobs: int) -> list[kaldi_dir.Utterance]:
    """Write the clips as 16 kHz mono FLAC into ``folder``; return utterances in their order.

    Channels are averaged. A file that is there, whole, and was made of the same stretch of the same
    source is kept; a file that no clip names is removed.

    Raises:
        UserError: a source is missing, empty or cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(clip, folder / f"{clip.id}.flac") for clip in clips]
    bar = {"total": len(tasks), "desc": "audio", "unit": "clip", "mininterval": 1.0}
    seconds = list(tqdm(map_processes(_convert, tasks, jobs), **bar))
    kept = {path for _, path in tasks} | {_origin(path) for _, path in tasks}
    for path in set(folder.iterdir()) - kept:
        path.unlink()
    return [
        kaldi_dir.Utterance(clip.id, clip.speaker, "", str(path), length, clip.label)
        for (clip, path), length in zip(tasks, seconds, strict=True)
    ]


def _convert(task: tuple[Clip, Path]) -> float:
    from espnet_ext.data import audio

    clip, path = task
    try:
        key = f"{clip.source} {content_key(clip.source)} {clip.start} {clip.end}"
        made = hashlib.sha256(key.encode()).hexdigest()
        if _origin(path).is_file() and _origin(path).read_text() == made:
            seconds = audio.flac_seconds(path)
            if seconds is not None:
                return seconds
        if not clip.source.stat().st_size:
            raise UserError(f"{clip.id}: {clip.source}: empty audio file")
    except OSError as error:
        raise UserError(f"{clip.id}: cannot read {clip.source}: {error.strerror}") from None
    samples, rate = audio.read_stretch(clip.source, clip.id, clip.start, clip.end)
    if len(samples) < audio.SHORTEST * rate:
        raise UserError(
            f"{clip.id}: {clip.source}: {len(samples)} samples from {clip.start} s on, "
            f"less than {audio.SHORTEST} s"
        )
    seconds = audio.write_flac(path, samples, rate)
    write_text(_origin(path), made)
    return seconds


def _origin(path: Path) -> Path:
    """Where it stands what a FLAC file was made of."""
    return path.with_suffix(".source")


def write_folds(
    out: Path,
    split: str,
    folds: Mapping[str, Mapping[str, Sequence[kaldi_dir.Utterance]]],
    apart: str = "speaker",
) -> list[Path]:
    """Write <out>/<split>-<fold>/{train,dev,test} and the list of folds <out>/folds/<split>.

    Args:
        out: folder of the data directories.
        split: name of the way of splitting.
        folds: utterances by the name of the fold and the part.
        apart: what no two parts of a fold may share: speaker or text.

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
            kaldi_dir.write_data_dir(out / f"{split}-{fold}" / part, utterances)
            written += [out / f"{split}-{fold}" / part / name for name in kaldi_dir.CLASS_FILES]
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


def positive(word: str) -> int:
    """Parse a whole number above 0."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def corpus_parser(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Options of the data stage of a corpus that the user has: ``folder`` says what to give."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", metavar="DIR", help=folder)
    parser.add_argument("--out", default="data", help="folder of the data directories")
    parser.add_argument("--nj", type=positive, default=2, help="processes (default 2)")
    # For tests on miniature trees, which have other counts.
    parser.add_argument("--uncounted", action="store_true", help=argparse.SUPPRESS)
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


def stamp_of(args: argparse.Namespace, code: Iterable[str], inputs: Iterable[Path]) -> Stamp:
    """The stamp of a data stage over the files it reads and its own source."""
    settings: list[Any] = [args.out, os.fspath(args.corpus or ""), args.uncounted]
    return Stamp(Path(args.out) / ".stamp.json", settings, [*code, *map(str, inputs)])


def write_corpus(
    args: argparse.Namespace,
    stamp: Stamp,
    sets: Mapping[str, Sequence[kaldi_dir.Utterance]],
    folds: Mapping[str, Mapping[str, Mapping[str, Sequence[kaldi_dir.Utterance]]]] | None = None,
    apart: str = "speaker",
) -> None:
    """Write the sets, then the folds of each way of splitting, then the stamp."""
    out = Path(args.out)
    kaldi_dir.write_sets(out, sets, args.nj)
    files = [out / name / file for name in sets for file in kaldi_dir.CLASS_FILES]
    for split, found in (folds or {}).items():
        files += write_folds(out, split, found, apart)
    files += {Path(u.audio) for utterances in sets.values() for u in utterances}
    stamp.write(sorted(files))
