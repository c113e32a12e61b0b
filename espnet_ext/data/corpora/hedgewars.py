"""Reads the acted voices of the game Hedgewars from its Debian package: voice, event, clip.

A clip's event is its file name without the digits at its end: what the line is spoken for. What
the recipes of this corpus share stands here; which clips they take, and as which classes, in
their ``local/data.py``.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from espnet_ext.data import kaldi_dir
from espnet_ext.data.corpora import corpus
from espnet_ext.data.fetch.debian import Package, fetch, unpack_folder
from espnet_ext.errors import UserError, run_cli
from espnet_ext.files import Stamp

PACKAGE = Package(
    name="hedgewars-data",
    version="1.0.2-6",
    sha256="722225903a72604403e6e0026e40e9a6953f47a74d94efc5f55504bc05bb4761",
)
FOLDER = "usr/share/games/hedgewars/Data/Sounds/voices"

# The class of an event is this repository's reading of what the line was spoken for.
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
EVENTS = (*CLASS_OF, "Kamikaze", "Melon")  # the last two are in no class
TEST, DEV = ("mobster", "surfer", "default_pl"), ("pirate",)
GROUPS = 3  # folds of by_group

# What the pinned package holds as classes; anything else means that a rule was changed.
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

type Utterances = list[kaldi_dir.Utterance]
# fold -> part -> utterances
type Split = dict[str, dict[str, Utterances]]
type Folds = dict[str, Split]


def choose(
    files: Mapping[str, Path], label_of: Mapping[str, str]
) -> tuple[list[corpus.Clip], Counter[str]]:
    """Return the clips among voice/file.ogg with the label of their event, and counts.

    Events that ``label_of`` lacks are left out, and so is a clip that is byte for byte an earlier
    one, by the name of voice and file.

    Raises:
        UserError: a file of an unknown event.
    """
    clips, seen, count = [], set(), Counter(files=len(files))
    for name, path in sorted(files.items()):
        voice, _, file = name.partition("/")
        event = re.sub(r"\d+$", "", file.removesuffix(".ogg"))
        if event not in EVENTS or not file.endswith(".ogg"):
            raise UserError(f"{name}: its event {event} is in no class (see CLASSES)")
        if event not in label_of:
            count["unclassed"] += 1
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            count["copies"] += 1
            continue
        seen.add(digest)
        speaker = voice.lower()
        key = f"{speaker}-{file.removesuffix('.ogg').lower()}"
        clips.append(corpus.Clip(key, speaker, label_of[event], path))
    count["clips"] = len(clips)
    count["voices"] = len({clip.speaker for clip in clips})
    return clips, count


def classed(files: Mapping[str, Path], counted: bool) -> list[corpus.Clip]:
    """The clips in their seven classes; with ``counted`` their counts are compared.

    Raises:
        UserError: what ``choose`` raises, or another count.
    """
    clips, count = choose(files, CLASS_OF)
    if counted:
        corpus.expect(PACKAGE.name, CONTENTS, count)
        corpus.expect(PACKAGE.name, COUNTS, Counter(clip.label for clip in clips))
    return clips


def fixed(utterances: Sequence[kaldi_dir.Utterance]) -> dict[str, Utterances]:
    """The split by voice that is the same for ever."""
    parts: dict[str, Utterances] = {"train": [], "dev": [], "test": []}
    for item in utterances:
        part = "test" if item.speaker in TEST else "dev" if item.speaker in DEV else "train"
        parts[part].append(item)
    return parts


def by_voice(utterances: Sequence[kaldi_dir.Utterance]) -> Split:
    """A fold a voice: it is the test, the one after it dev, the others train."""
    voices = sorted({item.speaker for item in utterances})
    after = [*voices[1:], *voices[:1]]
    held = {voice: ({voice}, {dev}) for voice, dev in zip(voices, after, strict=True)}
    return _apart(utterances, held)


def by_group(utterances: Sequence[kaldi_dir.Utterance]) -> Split:
    """GROUPS folds: a group of voices is the test, one voice of the next group dev.

    A group is every third voice of the alphabet, so that voices that share a language or
    recordings are spread over the groups.
    """
    voices = sorted({item.speaker for item in utterances})
    groups = min(GROUPS, len(voices))
    held = {f"{i + 1}": (set(voices[i::groups]), {voices[(i + 1) % groups]}) for i in range(groups)}
    return _apart(utterances, held)


def strict(split: Split) -> Split:
    """Each fold twice, with neither a voice nor a phrase of training in its test.

    Test and dev keep one half of each class's events, train keeps the other.
    """
    return {
        f"{fold}-{half}": {
            part: [u for u in found if (phrase_half(u) == half) == (part != "train")]
            for part, found in parts.items()
        }
        for fold, parts in split.items()
        for half in "ab"
    }


def phrase_half(utterance: kaldi_dir.Utterance) -> str:
    """Return a or b for an utterance: every second event of its class, in the order of CLASSES."""
    event = re.sub(r"\d+$", "", utterance.id.partition("-")[2])
    events = CLASSES[utterance.label].lower().split()
    return "ab"[events.index(event) % 2]


def _apart(
    utterances: Sequence[kaldi_dir.Utterance], held: Mapping[str, tuple[set[str], set[str]]]
) -> Split:
    """Folds without the voices held out: fold -> (those of test, those of dev)."""
    return {
        fold: {
            "train": [u for u in utterances if u.speaker not in test | dev],
            "dev": [u for u in utterances if u.speaker in dev],
            "test": [u for u in utterances if u.speaker in test],
        }
        for fold, (test, dev) in held.items()
    }


def main(
    doc: str | None,
    script: str,
    make: Callable[[dict[str, Path], Path, int, bool], tuple[dict[str, Utterances], Folds]],
) -> None:
    """Read the command line of a recipe's data stage and prepare its data.

    Args:
        doc: what --help says.
        script: the recipe's file, for the stamp.
        make: from the files by name, the folder of the audio, the number of processes and
            whether counts must hold, to the sets and the folds.
    """
    args = corpus.package_parser(doc).parse_args()
    sys.exit(run_cli("local/data.py", lambda: _prepare(args, script, make)))


def _prepare(args: argparse.Namespace, script: str, make: Callable) -> None:
    """Make the data directories, unless they are up to date."""
    out, downloads = Path(args.out), Path(args.downloads)
    package = Package(PACKAGE.name, PACKAGE.version, args.sha256 or PACKAGE.sha256)
    stamp = Stamp(out / ".stamp.json", [package.sha256, str(out)], [script, __file__, *corpus.CODE])
    # A package that the user names is checked even where nothing is left to do.
    deb = fetch(package, downloads, args.package) if args.package else None
    if stamp.is_current():
        print(f"{out}: up to date")
        return
    deb = deb or fetch(package, downloads)
    corpus.remove_leftovers(out, out / "audio", downloads)
    files = unpack_folder(deb, FOLDER, downloads / "voices")
    sets, folds = make(files, out / "audio", args.nj, args.sha256 is None)
    corpus.write_corpus(args, stamp, sets, folds)
