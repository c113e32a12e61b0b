#!/usr/bin/env python3
"""Prepare the acted voices of the game Hedgewars: for which event was a line spoken?

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package hedgewars-data_1.0.2-6_all.deb

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all            777 clips of 15 voices in 7 classes
  data/{train,dev,test}   a fixed split: test Mobster, Surfer, Default_pl; dev Pirate; the rest
  data/voice-VOICE/{train,dev,test}   leave one voice out: test VOICE, dev the voice after it
  data/strict-VOICE-{a,b}/{train,dev,test}   voices and phrases apart: the events of each class
      are halved; test and dev hold one half, train the other half in other voices
  data/group-{1..3}/..., data/group_strict-{1..3}-{a,b}/...   the same with five voices in test
Every clip is tested once in the folds of each of these four ways of splitting.

Rules: a clip's event is its file name without the digits at its end, its class that of the event
in CLASSES. The events Kamikaze and Melon are in no class (29 clips). A clip that is byte for byte
an earlier one, by the name of voice and file, is left out (33).
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

from espnet_ext.data import corpus, kaldi_dir
from espnet_ext.data.package import Package, fetch, unpack_folder
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.files import Stamp

PACKAGE = Package(
    name="hedgewars-data",
    version="1.0.2-6",
    sha256="722225903a72604403e6e0026e40e9a6953f47a74d94efc5f55504bc05bb4761",
)
FOLDER = "usr/share/games/hedgewars/Data/Sounds/voices"

# The class of an event is this recipe's reading of what the line was spoken for.
CLASSES = {
    "pain": "Ow Ooff Ouch PoisonMoan PoisonCough",
    "effort": "Jump Firepunch",
    "joy": "Victory Laugh Excellent Brilliant Amazing Flawless Firstblood Enemydown",
    "anger": "Illgetyou Youllregretthat Gonnagetyou Justyouwait Traitor Stupid Revenge Sameteam "
    "Nutter Cutitout Leavemealone Coward",
    "fear": "Nooo Runaway Incoming Takecover Uh-oh Watchit Flyaway Grenade Whatthe",
    "regret": "Missed Drat Bugger Ohdear Oops",
    "neutral": "Hello Byebye Solong Yessir Boring Hmm Hurry Reinforcements Watchthis "
    "Thisoneismine Fire Comeonthen",
}
CLASS_OF = {event: name for name, events in CLASSES.items() for event in events.split()}
UNCLASSED = ("Kamikaze", "Melon")
TEST, DEV = ("mobster", "surfer", "default_pl"), ("pirate",)
GROUPS = 3  # folds of the split `group`

# What the pinned package holds; anything else means that a rule was changed.
CONTENTS = {"files": 839, "unclassed": 29, "copies": 33, "clips": 777, "voices": 15}
COUNTS = {
    "pain": 112,
    "effort": 84,
    "joy": 103,
    "anger": 156,
    "fear": 114,
    "regret": 58,
    "neutral": 150,
}


def choose(files: dict[str, Path]) -> tuple[list[corpus.Clip], Counter[str]]:
    """Apply the rules to voice/file.ogg; return the clips and the counts of what was met."""
    clips, seen, count = [], set(), Counter(files=len(files))
    for name, path in sorted(files.items()):
        voice, _, file = name.partition("/")
        event = re.sub(r"\d+$", "", file.removesuffix(".ogg"))
        if event in UNCLASSED:
            count["unclassed"] += 1
            continue
        if event not in CLASS_OF or not file.endswith(".ogg"):
            raise UserError(f"{name}: its event {event} is in no class (see CLASSES)")
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            count["copies"] += 1
            continue
        seen.add(digest)
        speaker = voice.lower()
        key = f"{speaker}-{file.removesuffix('.ogg').lower()}"
        clips.append(corpus.Clip(key, speaker, CLASS_OF[event], path))
    count["clips"] = len(clips)
    count["voices"] = len({clip.speaker for clip in clips})
    return clips, count


def phrase_half(utterance: kaldi_dir.Utterance) -> str:
    """Return a or b for an utterance: every second event of its class, in the order of CLASSES."""
    event = re.sub(r"\d+$", "", utterance.id.partition("-")[2])
    events = CLASSES[utterance.label].lower().split()
    return "ab"[events.index(event) % 2]


def split(utterances: list[kaldi_dir.Utterance]) -> dict[str, list[kaldi_dir.Utterance]]:
    """Return the fixed split, with the whole corpus first."""
    parts: dict[str, list[kaldi_dir.Utterance]] = {"train": [], "dev": [], "test": []}
    for item in utterances:
        part = "test" if item.speaker in TEST else "dev" if item.speaker in DEV else "train"
        parts[part].append(item)
    return {"all": utterances, **parts}


def folds(utterances: list[kaldi_dir.Utterance]) -> dict:
    """Return the folds of each way of splitting: split -> fold -> part -> utterances."""
    voices = sorted({item.speaker for item in utterances})
    count = len(voices)
    single = {voice: ({voice}, {voices[(i + 1) % count]}) for i, voice in enumerate(voices)}
    # Every third voice of the alphabet, so that what shares a language or recordings is spread.
    groups = min(GROUPS, count)
    group = {
        f"{i + 1}": (set(voices[i::groups]), {voices[(i + 1) % groups]}) for i in range(groups)
    }
    return {
        "voice": _apart(utterances, single),
        "strict": _strict(utterances, single),
        "group": _apart(utterances, group),
        "group_strict": _strict(utterances, group),
    }


def _apart(utterances: list[kaldi_dir.Utterance], held: dict) -> dict:
    """Folds without the voices held out: fold -> (those of test, those of dev)."""
    return {
        fold: {
            "train": [u for u in utterances if u.speaker not in test | dev],
            "dev": [u for u in utterances if u.speaker in dev],
            "test": [u for u in utterances if u.speaker in test],
        }
        for fold, (test, dev) in held.items()
    }


def _strict(utterances: list[kaldi_dir.Utterance], held: dict) -> dict:
    """The same with half the events of each class in test and dev, the other half in train."""
    return {
        f"{fold}-{half}": {
            part: [u for u in found if (phrase_half(u) == half) == (part != "train")]
            for part, found in parts.items()
        }
        for fold, parts in _apart(utterances, held).items()
        for half in "ab"
    }


def prepare(args: argparse.Namespace) -> None:
    """Make the data directories, unless they are up to date."""
    out, downloads = Path(args.out), Path(args.downloads)
    package = Package(PACKAGE.name, PACKAGE.version, args.sha256 or PACKAGE.sha256)
    code = [__file__, *corpus.CODE]
    stamp = Stamp(out / ".stamp.json", [package.sha256, str(out)], code)
    # A package that the user names is checked even where nothing is left to do.
    deb = fetch(package, downloads, args.package) if args.package else None
    if stamp.is_current():
        print(f"{out}: up to date")
        return
    deb = deb or fetch(package, downloads)
    corpus.remove_leftovers(out, out / "audio", downloads)
    files = unpack_folder(deb, FOLDER, downloads / "voices")
    clips, count = choose(files)
    if args.sha256 is None:
        corpus.expect(str(deb), CONTENTS, count)
        corpus.expect(str(deb), COUNTS, Counter(clip.label for clip in clips))
    utterances = corpus.convert(clips, out / "audio", args.nj)
    corpus.write_corpus(args, stamp, split(utterances), folds(utterances))


def main() -> None:
    """Read the command line and prepare the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data", help="folder of the data directories")
    parser.add_argument("--downloads", default="downloads", help="folder of what is fetched")
    parser.add_argument("--package", metavar="FILE", help="the .deb, if you have it already")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes (default 2)")
    # For tests with a package of their own; the counts are then not compared.
    parser.add_argument("--sha256", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.exit(run_cli("local/data.py", lambda: prepare(args)))


if __name__ == "__main__":
    main()
