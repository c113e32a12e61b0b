#!/usr/bin/env python3
"""Fetch the speech of the game "Beneath a Steel Sky", which has no transcript, to be labelled.

Fetches the Debian package beneath-a-steel-sky 0.0372-8 (66 MB; (C) Revolution Software, free to
distribute, not to be sold) and writes its 3,491 clips of English, 116 minutes, as 16 kHz FLAC.
A trained model can write transcripts for them.

Example:
  python local/untranscribed.py
  espnet-ext label exp/nested_whisper_tiny_m/deploy/4L-1536-32b data/steel_sky/audio \
    --more data/train --out data/train_labelled
"""

from pathlib import Path

from espnet_ext.data.corpora import steel_sky
from espnet_ext.data.corpora.stage import DataStage, main

CONTENTS = {"clips": 3491}  # what the pinned package holds


def prepare(stage: DataStage) -> None:
    """Write the clips, unless they are up to date."""
    if stage.is_current():
        return
    clips = steel_sky.clips(stage)
    stage.expect(CONTENTS, {"clips": len(clips)})
    made = stage.convert(clips)
    print(f"{stage.audio}: {len(made)} clips, {sum(u.seconds for u in made) / 60:.1f} min")
    stage.write({}, extra_files=[Path(u.audio) for u in made])


if __name__ == "__main__":
    main(__doc__, prepare, packages=[steel_sky.PACKAGE], out="data/steel_sky")
