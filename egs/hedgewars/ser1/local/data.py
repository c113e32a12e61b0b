#!/usr/bin/env python3
"""Prepare the acted voices of the game Hedgewars: for which event was a line spoken?

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --package hedgewars-data_1.0.2-6_all.deb

Writes 16 kHz mono FLAC to data/audio, and these sets:
  data/all            777 clips of 15 voices in 7 classes
  data/{train,dev,test}   a fixed split: test Mobster, Surfer, Default_pl; dev Pirate; the rest
  data/voice-VOICE/{train,dev,test}   leave one voice out: test VOICE, dev the voice after it
  data/strict-VOICE-{a,b}/{train,dev,test}   new voices and phrases: the events of each class
      are halved; test and dev hold one half, train the other half in other voices
  data/group-{1..3}/..., data/group_strict-{1..3}-{a,b}/...   the same with five voices in test
Every clip is tested once in the folds of each of these four ways of splitting.

Rules: a clip's event is its file name without the digits at its end, its class that of the event
in data/corpora/hedgewars.py. The events Kamikaze and Melon are in no class (29 clips). A clip
that is byte for byte an earlier one, by the name of voice and file, is left out (33).
"""

from espnet_ext.data.corpora import hedgewars
from espnet_ext.data.corpora.stage import DataStage, main


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    if stage.is_current():
        return
    utterances = stage.convert(hedgewars.classed(stage, hedgewars.voices(stage)))
    voice, group = hedgewars.by_voice(utterances), hedgewars.by_group(utterances)
    folds = {
        "voice": voice,
        "strict": hedgewars.strict(voice),
        "group": group,
        "group_strict": hedgewars.strict(group),
    }
    stage.write({"all": utterances, **hedgewars.fixed(utterances)}, folds)


if __name__ == "__main__":
    main(__doc__, prepare, packages=[hedgewars.PACKAGE])
