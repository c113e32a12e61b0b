#!/usr/bin/env python3
"""Prepare the acted voices of the game Hedgewars twice: by event-affect, and by keyword.

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package hedgewars-data_1.0.2-6_all.deb

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all            the 777 clips of event-affect, whose features all its folds use
  data/{train,dev,test}   event-affect: 777 clips of 15 voices in 7 classes; the clips, the fixed
      split and the folds data/voice-VOICE/ and data/group-{1..3}/ are those of egs/hedgewars/ser1
  data/keyword_{train,dev,test}   which of 53 lines? The ten voices that speak English; test
      Mobster and Surfer, dev Pirate, the other seven
  data/keyword-VOICE/{train,dev,test}   the same, one of the ten voices left out

Rules for keywords: the line is the clip's event, Kamikaze and Melon among them; PoisonCough and
PoisonMoan, which two of the ten voices have, are left out. Copies are left out as in ser1.
"""

from pathlib import Path

from espnet_ext.data.corpora import hedgewars
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main

# The other five voice packs speak Spanish, Polish, Russian or Ukrainian.
ENGLISH = (
    *("British", "Classic", "Default", "HillBilly", "Mobster"),
    *("Pirate", "Robot", "Russian", "Singer", "Surfer"),
)
RARE = ("PoisonCough", "PoisonMoan")
KEYWORDS = {event: event.lower() for event in hedgewars.EVENTS if event not in RARE}
CONTENTS = {
    "files": 591,
    "unclassed": 4,
    "copies": 22,
    "clips": 565,
    "voices": 10,
    "keywords": 53,
}


def keywords(stage: DataStage, files: dict[str, Path]) -> list[Clip]:
    """Return the English clips, each with its event as its class.

    Raises:
        UserError: a file of an unknown event, or a wrong count.
    """
    english = {name: path for name, path in files.items() if name.partition("/")[0] in ENGLISH}
    clips, count = hedgewars.choose(english, KEYWORDS)
    count["keywords"] = len({clip.label for clip in clips})
    stage.expect(CONTENTS, count)
    return clips


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    if stage.is_current():
        return
    files = hedgewars.voices(stage)
    clips = {"affect": hedgewars.classed(stage, files), "word": keywords(stage, files)}
    found = stage.convert_sets(clips)
    by_affect, by_word = found["affect"], found["word"]
    sets = {"all": by_affect, **hedgewars.fixed(by_affect)}
    sets |= {f"keyword_{part}": items for part, items in hedgewars.fixed(by_word).items()}
    folds = {
        "voice": hedgewars.by_voice(by_affect),
        "group": hedgewars.by_group(by_affect),
        "keyword": hedgewars.by_voice(by_word),
    }
    stage.write(sets, folds)


if __name__ == "__main__":
    main(__doc__, prepare, packages=[hedgewars.PACKAGE])
