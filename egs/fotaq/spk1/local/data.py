#!/usr/bin/env python3
"""Prepare the characters of "Flight of the Amazon Queen": who speaks this line?

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package flight-of-the-amazon-queen_1.0.0-9_all.deb

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all                60 clips of each of the 25 characters that have so many
  data/{train,dev,test}   by a hash of the text: 70, 10 and 20 %; no text is in two of them
  data/text-K/{train,dev,test}   five folds by the same hash: test K, dev the next, the rest

Rules: the clips of egs/fotaq/asr1 (voices only, with text, of a plausible length; a text that is
only an aside is none), byte-for-byte copies left out; of each character with at least 60 clips the
60 whose names' SHA-256 are least.
"""

import argparse
import dataclasses
import hashlib
import sys
from collections import Counter
from pathlib import Path

from espnet_ext.data import kaldi_dir, text
from espnet_ext.data.corpora import corpus, queen, splits
from espnet_ext.data.fetch.debian import Package, fetch, unpack_member
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.files import Stamp, atomic_path

PACKAGE = Package(
    name="flight-of-the-amazon-queen",
    version="1.0.0-9",
    sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
)
MEMBER = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
CORPUS = "fotaq-spk"  # seeds the hash of the splits
EACH = 60
FOLDS = 5

# What the pinned package gives.
COUNTS = {"characters": 25, "all": 1500}
BIT_RATE = 2000  # bytes a second of the game's MP3


def choose(clips: list[queen.Clip], container: queen.Container, each: int) -> list[queen.Clip]:
    """Apply the rules; return the clips of all characters."""
    by_voice: dict[str, list[queen.Clip]] = {}
    seen: set[bytes] = set()
    for clip in sorted(clips, key=lambda c: c.name):
        spoken = text.normalise_text(clip.text)
        span = container.entries[f"{clip.name}.SB"]
        if not clip.is_voice or not spoken:
            continue
        if splits.implausible(spoken, span[1] / BIT_RATE) is not None:
            continue
        digest = hashlib.sha256(queen.read_span(container.path, *span)).digest()
        if digest in seen:
            continue
        seen.add(digest)
        by_voice.setdefault(clip.voice, []).append(clip)
    chosen = []
    for found in by_voice.values():
        if len(found) >= each:
            found.sort(key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())
            chosen += found[:each]
    return chosen


def unpack(clips: list[queen.Clip], container: queen.Container, folder: Path) -> list[corpus.Clip]:
    """Write the MP3 of each clip into ``folder``; return what is to be converted."""
    found = []
    for clip in clips:
        path = folder / f"{clip.name}.mp3"
        data = queen.read_span(container.path, *container.entries[f"{clip.name}.SB"])
        if not path.is_file() or path.stat().st_size != len(data):
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        found.append(corpus.Clip(f"{clip.voice}-{clip.name.lower()}", clip.voice, clip.voice, path))
    return found


def fold_of(spoken: str) -> int:
    """Return the fold of a text, 0 to 4, the same for ever on every machine."""
    digest = hashlib.sha1(f"{CORPUS}|{spoken}".encode(), usedforsecurity=False).hexdigest()
    return int(digest[:8], 16) * FOLDS // 2**32


def arrange(utterances: list[kaldi_dir.Utterance]) -> tuple[dict, dict]:
    """Return the sets, and the folds: fold -> part -> utterances."""
    sets: dict[str, list] = {"all": utterances, "train": [], "dev": [], "test": []}
    folds: dict[str, dict[str, list]] = {}
    for number in range(FOLDS):
        folds[str(number + 1)] = {"train": [], "dev": [], "test": []}
    for item in utterances:
        sets[splits.split_of(CORPUS, item.text, test=0.2, dev=0.1)].append(item)
        own = fold_of(item.text)
        for number in range(FOLDS):
            parts = {number: "test", (number + 1) % FOLDS: "dev"}
            folds[str(number + 1)][parts.get(own, "train")].append(item)
    return sets, folds


def prepare(args: argparse.Namespace) -> None:
    """Make the data directories, unless they are up to date."""
    out, downloads = Path(args.out), Path(args.downloads)
    package = Package(PACKAGE.name, PACKAGE.version, args.sha256 or PACKAGE.sha256)
    code = [__file__, *corpus.CODE, *(str(m.__file__) for m in (queen, splits, text))]
    stamp = Stamp(out / ".stamp.json", [package.sha256, args.each, str(out)], code)
    # A package that the user names is checked even where nothing is left to do.
    deb = fetch(package, downloads, args.package) if args.package else None
    if stamp.is_current():
        print(f"{out}: up to date")
        return
    deb = deb or fetch(package, downloads)
    corpus.remove_leftovers(out, out / "audio", downloads)
    container = queen.Container(unpack_member(deb, MEMBER, downloads / Path(MEMBER).name))
    clips = choose(queen.read_clips(container), container, args.each)
    if not clips:
        raise UserError(f"{deb}: no character has {args.each} clips")
    if args.sha256 is None:
        counts = Counter(clip.voice for clip in clips)
        corpus.expect(str(deb), COUNTS, {"characters": len(counts), "all": len(clips)})
    spoken = {c.name.lower(): text.normalise_text(c.text) for c in clips}
    utterances = [
        dataclasses.replace(item, text=spoken[item.id.partition("-")[2]])
        for item in corpus.convert(
            unpack(clips, container, downloads / "clips"), out / "audio", args.nj
        )
    ]
    sets, folds = arrange(utterances)
    corpus.write_corpus(args, stamp, sets, {"text": folds}, apart="text")


def main() -> None:
    """Read the command line and prepare the data."""
    parser = corpus.package_parser(__doc__)
    parser.add_argument("--each", type=at_least(1), default=EACH, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.exit(run_cli("local/data.py", lambda: prepare(args)))


if __name__ == "__main__":
    main()
