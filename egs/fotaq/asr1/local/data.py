#!/usr/bin/env python3
"""Prepare the speech of the game "Flight of the Amazon Queen" as Kaldi data directories.

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package flight-of-the-amazon-queen_1.0.0-9_all.deb

Writes 16 kHz mono FLAC to data/audio and the sets data/{train,dev,test,unseen}. A run that was
cut short goes on where it stopped; one that is up to date does nothing.

Rules, in this order (espnet_ext/data/corpora/splits.py has the limits):
  1. Clips without text are left out (158), and those whose text is nothing but an aside such as
     "(sigh)" (14).
  2. Speakers lou, henry, naomi, chef and lola form the set unseen; the others fall into train,
     dev or test by a hash of the normalised text, so no text is in two of them.
  3. Too short or long for the text, or in itself: left out (7).
  4. Of unseen, texts that train has too are left out (72 of 393).
  5. Of train, clips that are byte for byte a clip of dev, test or unseen are left out (1, whose
     two texts differ by a typing error). Copies within one set stay.
The text written is normalised: lower case, letters and apostrophes; digits are spelt out by the
table SPOKEN, after the hash; a line with a digit that is not in the table is left out.
This leaves train 5,249, dev 345, test 578, unseen 321. Before rules 4 and 5 the counts are
5,250, 345, 578 and 393, as others have counted these sets. Their minutes are 218.0, 13.2, 24.9
and 16.3; ours, from the decoded samples, 216.9, 13.2, 24.8 and 16.2, which is what the clips'
bytes give at 16 kbit/s. Why theirs are 0.5 % longer is not known.
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from espnet_ext.data import kaldi_dir, text
from espnet_ext.data.corpora import queen, splits
from espnet_ext.data.corpora.corpus import expect, package_parser, remove_leftovers
from espnet_ext.data.fetch.debian import Package, fetch, unpack_member
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import at_least, run_cli
from espnet_ext.files import Stamp, scratch_folder, sha256_file, write_text

PACKAGE = Package(
    name="flight-of-the-amazon-queen",
    version="1.0.0-9",
    sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
)
MEMBER = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
CORPUS = "fotaq"  # seeds the hash of the splits
SETS = ("train", "dev", "test", "unseen")
UNSEEN = frozenset(("lou", "henry", "naomi", "chef", "lola"))

# What the pinned package holds; anything else means that a reader or a rule was changed.
CONTENTS = {"files": 7671, "clips": 6745, "cut scenes": 301, "with text": 6587}
BY_RULES = {"train": 5250, "dev": 345, "test": 578, "unseen": 393}
WRITTEN = {"train": 5249, "dev": 345, "test": 578, "unseen": 321}

SPOKEN = {
    "00": "hundred",
    "100": "a hundred",
    "13th": "thirteenth",
    "1844": "eighteen forty four",
    "19": "nineteen",
    "1922": "nineteen twenty two",
    "1940's": "nineteen forties",
    "1948": "nineteen forty eight",
    "24": "twenty four",
    "26": "twenty six",
    "2b": "two b",
    "50": "fifty",
    "x7": "x seven",
}


@dataclass(frozen=True)
class Candidate:
    """A clip that rules 1 and 2 keep: its id, speaker, hash key, text, set, and name."""

    id: str
    speaker: str
    key: str
    text: str
    part: str
    clip: str


def spell_out(key: str) -> str | None:
    """Return a normalised text with its digits spelt out; None if SPOKEN does not have them."""
    words = [SPOKEN.get(word, word) for word in key.split()]
    if any(char.isdigit() for word in words for char in word):
        return None
    return " ".join(words)


def choose(clips: list[queen.Clip]) -> list[Candidate]:
    """Apply rules 1 and 2."""
    candidates = []
    for clip in clips:
        key = text.normalise_text(clip.text)
        spoken = spell_out(key)
        if not spoken:
            continue
        part = "unseen" if clip.voice in UNSEEN else splits.split_of(CORPUS, key)
        name = f"{clip.voice}-{clip.name}"
        candidates.append(Candidate(name, clip.voice, key, spoken, part, clip.name))
    return candidates


def limit_sets(candidates: list[Candidate], limit: int | None) -> list[Candidate]:
    """Keep at most ``limit`` candidates a set, chosen by a hash."""
    if limit is None:
        return candidates
    count: Counter[str] = Counter()
    chosen = []
    for item in sorted(candidates, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest()):
        count[item.part] += 1
        if count[item.part] <= limit:
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.id)


def convert(task: tuple[Candidate, Path, tuple[int, int], Path, Path]) -> tuple[float, str]:
    """Write one clip's FLAC unless it is there, whole; return its seconds and its source's hash."""
    from espnet_ext.data import audio

    item, container, span, path, scratch = task
    data = queen.read_span(container, *span)
    digest = hashlib.sha256(data).hexdigest()
    seconds = audio.flac_seconds(path) if path.exists() else None
    if seconds is None:
        samples, rate = audio.decode(data, f"{container}: {item.clip}.SB", queen.SAMPLE_RATE)
        seconds = audio.write_flac(scratch / path.name, samples, rate)
        os.replace(scratch / path.name, path)
    return seconds, digest


def convert_all(
    candidates: list[Candidate], container: queen.Container, folder: Path, jobs: int
) -> list[tuple[float, str]]:
    """Convert every clip on ``jobs`` processes, with a progress bar; results in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    bar = {"total": len(candidates), "desc": "audio", "unit": "clip", "mininterval": 1.0}
    with scratch_folder(folder) as scratch:
        tasks = [
            (item, container.path, span, folder / f"{item.id}.flac", scratch)
            for item in candidates
            if (span := container.entries[f"{item.clip}.SB"])
        ]
        return list(tqdm(map_processes(convert, tasks, jobs), **bar))


def assemble(
    candidates: list[Candidate],
    sounds: list[tuple[float, str]],
    folder: Path,
    trained: set[str],
) -> tuple[dict[str, list[kaldi_dir.Utterance]], Counter[str]]:
    """Apply rules 3 to 5; return the utterances of each set and the counts before rules 4, 5.

    ``trained`` are the texts of train, with those that ``--limit`` leaves out.
    """
    kept = [
        (item, seconds, digest)
        for item, (seconds, digest) in zip(candidates, sounds, strict=True)
        if splits.implausible(item.key, seconds) is None
    ]
    by_rules = Counter(item.part for item, _, _ in kept)
    held_out = {digest for item, _, digest in kept if item.part != "train"}
    sets: dict[str, list[kaldi_dir.Utterance]] = {name: [] for name in SETS}
    for item, seconds, digest in kept:
        if item.part == "unseen" and item.text in trained:
            continue
        if item.part == "train" and digest in held_out:
            continue
        path = str(folder / f"{item.id}.flac")
        sets[item.part].append(kaldi_dir.Utterance(item.id, item.speaker, item.text, path, seconds))
    return sets, by_rules


def prepare(args: argparse.Namespace) -> None:
    """Make the data directories, unless they are up to date."""
    out = Path(args.out)
    package = Package(PACKAGE.name, PACKAGE.version, args.sha256 or PACKAGE.sha256)
    counted = args.sha256 is None
    readers = [str(module.__file__) for module in (queen, splits, kaldi_dir, text)]
    rooms = Path(str(kaldi_dir.__file__)).parent
    resampler = rooms / "audio.py"  # not imported where nothing is to do
    code = [__file__, *readers, resampler, rooms / "fetch/debian.py"]
    stamp = Stamp(out / ".stamp.json", [package.sha256, args.limit, str(out)], code)
    # A package that the user names is checked even where nothing is left to do.
    deb = fetch(package, args.downloads, args.package) if args.package else None
    if stamp.is_current():
        print(f"{out}: up to date")
        return
    deb = deb or fetch(package, args.downloads)
    remove_leftovers(out, out / "audio", Path(args.downloads))
    container = queen.Container(
        unpack_member(deb, MEMBER, Path(args.downloads) / Path(MEMBER).name)
    )
    clips = queen.read_clips(container)
    if counted:
        contents = {
            "files": len(container.entries),
            "clips": len(container.names(".SB")),
            "cut scenes": len(container.names(".CUT")),
            "with text": len(clips),
        }
        expect(str(container.path), CONTENTS, contents)
    folder = out / "audio"
    candidates = choose(clips)
    # Audio of another package, or resampled otherwise, must not be taken for this one's.
    source, made_from = out / ".source", f"{package.sha256} {sha256_file(resampler)}"
    if not source.exists() or source.read_text() != made_from:
        remove_audio(folder, candidates)
        write_text(source, made_from)
    trained = {item.text for item in candidates if item.part == "train"}
    chosen = limit_sets(candidates, args.limit)
    sounds = convert_all(chosen, container, folder, args.nj)
    sets, by_rules = assemble(chosen, sounds, folder, trained)
    if counted and args.limit is None:
        expect("before rules 4 and 5", BY_RULES, by_rules)
        expect(str(out), WRITTEN, {name: len(items) for name, items in sets.items()})
    kaldi_dir.write_sets(out, sets, args.nj)
    listed = {Path(item.audio) for items in sets.values() for item in items}
    if args.limit is None:
        remove_audio(folder, candidates, keep=listed)
    outputs = [
        out / name / file for name in SETS for file in (*kaldi_dir.FILES, kaldi_dir.AUDIO_DIGEST)
    ]
    stamp.write([*outputs, *sorted(listed)])


def remove_audio(folder: Path, candidates: list[Candidate], keep: Container[Path] = ()) -> None:
    """Remove the FLAC of every clip that is not in ``keep``; other files are the user's."""
    for item in candidates:
        path = folder / f"{item.id}.flac"
        if path not in keep:
            path.unlink(missing_ok=True)


def main() -> None:
    """Read the command line and prepare the data."""
    parser = package_parser(__doc__)
    parser.add_argument(
        "--limit", type=at_least(1), help="at most so many utterances a set: a trial"
    )
    args = parser.parse_args()
    sys.exit(run_cli("local/data.py", lambda: prepare(args)))


if __name__ == "__main__":
    main()
