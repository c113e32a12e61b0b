"""The acted voices of the game Hedgewars: voice, event, clip.

An event is what a line is spoken for: the clip's file name without the digits at its end.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage
from espnet_ext.data.fetch.debian import Package, unpack_folder
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.errors import UserError

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
COUNTS = Counter(pain=112, effort=84, joy=103, anger=156, fear=114, regret=58, neutral=150)

# fold -> part -> utterances
type Split = dict[str, dict[str, list[Utterance]]]


def voices(stage: DataStage) -> dict[str, Path]:
    """Fetch and unpack the package; return the files by their names, voice/file.ogg."""
    return unpack_folder(stage.fetch(PACKAGE), FOLDER, stage.downloads / "voices")


def choose(
    files: Mapping[str, Path], label_of: Mapping[str, str]
) -> tuple[list[Clip], Counter[str]]:
    """Return the clips among ``voices`` with the label of their event, and counts.

    Events that ``label_of`` lacks are left out, and so is a clip that is byte for byte an earlier
    one in the order of their names.

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
        clips.append(Clip(id=key, speaker=speaker, label=label_of[event], source=path))
    count["clips"] = len(clips)
    count["voices"] = len({clip.speaker for clip in clips})
    return clips, count


def classed(stage: DataStage, files: Mapping[str, Path]) -> list[Clip]:
    """Return the clips in their seven classes.

    Raises:
        UserError: what ``choose`` raises, or a wrong count.
    """
    clips, count = choose(files, CLASS_OF)
    stage.expect(CONTENTS, count)
    stage.expect(COUNTS, Counter(clip.label for clip in clips))
    return clips


def fixed(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Return train, dev and test by voice."""
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for item in utterances:
        part = "test" if item.speaker in TEST else "dev" if item.speaker in DEV else "train"
        parts[part].append(item)
    return parts


def by_voice(utterances: Sequence[Utterance]) -> Split:
    """Return a fold for each voice: it is the test, the voice after it dev, the others train."""
    voices = sorted({item.speaker for item in utterances})
    after = [*voices[1:], *voices[:1]]
    held = {voice: ({voice}, {dev}) for voice, dev in zip(voices, after, strict=True)}
    return _held_out(utterances, held)


def by_group(utterances: Sequence[Utterance]) -> Split:
    """Return GROUPS folds: a group of voices is the test, one voice of the next group dev.

    A group is every third voice of the alphabet, which spreads voices that share a language or
    recordings over the groups.
    """
    voices = sorted({item.speaker for item in utterances})
    groups = min(GROUPS, len(voices))
    held = {f"{i + 1}": (set(voices[i::groups]), {voices[(i + 1) % groups]}) for i in range(groups)}
    return _held_out(utterances, held)


def strict(split: Split) -> Split:
    """Return two folds of each: its test shares neither a voice nor a phrase with training.

    Test and dev keep one half of each class's events, train the other.
    """
    return {
        f"{fold}-{half}": {
            part: [u for u in found if (phrase_half(u) == half) == (part != "train")]
            for part, found in parts.items()
        }
        for fold, parts in split.items()
        for half in "ab"
    }


def phrase_half(utterance: Utterance) -> str:
    """Return a or b for an utterance, in turns by its class's events in the order of CLASSES."""
    event = re.sub(r"\d+$", "", utterance.id.partition("-")[2])
    events = CLASSES[utterance.label].lower().split()
    return "ab"[events.index(event) % 2]


def _held_out(
    utterances: Sequence[Utterance], held: Mapping[str, tuple[set[str], set[str]]]
) -> Split:
    """Return folds; ``held`` are the voices of test and of dev by fold."""
    return {
        fold: {
            "train": [u for u in utterances if u.speaker not in test | dev],
            "dev": [u for u in utterances if u.speaker in dev],
            "test": [u for u in utterances if u.speaker in test],
        }
        for fold, (test, dev) in held.items()
    }
