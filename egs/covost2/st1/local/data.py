#!/usr/bin/env python3
"""Prepare CoVoST 2 (Wang et al., arXiv 2007.10310): Common Voice 4 and its translations.

Example:
  python local/data.py --corpus /data/covost --source en --target zh-CN

The folder holds Common Voice 4 (cv-corpus-4-2019-12-10) and the lists of translations:
  <source>/validated.tsv, <source>/clips/*.mp3
  covost_v2.<source>_<target>.tsv, there or in <source>/

Writes 16 kHz mono FLAC to data/audio and data/{train,dev,test}, each with the words spoken (text)
and the translation (text.<target>). The sets are CoVoST's, not Common Voice's: both lists are
joined by the name of the clip. Rows of the split train_covost belong to train. Left out, and
counted: clips that are missing or empty, rows without a translation or without a sentence, rows
whose translation says REMOVE, and, as CoVoST's own script does, rows of clips that validated.tsv
does not list. If these are more than one in twenty, that is another release of Common Voice.
"""

import re
from collections import Counter
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main, print_left_out
from espnet_ext.data.corpora.tables import inside, read_tsv
from espnet_ext.data.corpora.translation import add_languages
from espnet_ext.data.text import collapse_blanks
from espnet_ext.errors import UserError, nearest

FOLDER = "the folder of Common Voice 4, which holds <source>/validated.tsv and <source>/clips"
MOST_UNLISTED = 0.05  # share of CoVoST's rows
UNLISTED = "not in validated.tsv"
REMOVE = re.compile(r"\bREMOVE\b")  # what translators wrote for a sentence to be left out
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}


def read_clips(
    root: Path, source: str, target: str, listed: Path, count: Counter[str]
) -> dict[str, list[Clip]]:
    """Join both lists by ``path``; return train, dev and test.

    Raises:
        UserError: too many clips of CoVoST are not in Common Voice's list, a clip is listed twice,
            or a split is none of SPLITS.
    """
    voice = {
        row["path"]: row
        for row in read_tsv(root / source / "validated.tsv", ("client_id", "path", "sentence"))
    }
    sets: dict[str, list[Clip]] = {"train": [], "dev": [], "test": []}
    seen = set()
    for row in read_tsv(listed, ("path", "translation", "split")):
        name, part = row["path"], SPLITS.get(row["split"])
        if part is None:
            raise UserError(f"{listed}: {name} has the split {nearest(row['split'], SPLITS)}")
        if name in seen:
            raise UserError(f"{listed}: {name} occurs twice")
        seen.add(name)
        if name not in voice:
            count[UNLISTED] += 1
            continue
        sentence = collapse_blanks(voice[name]["sentence"])
        translation = collapse_blanks(row["translation"])
        path = inside(root / source / "clips", name)
        if REMOVE.search(translation):
            count["marked REMOVE"] += 1
        elif not sentence or not translation:
            count["without a translation" if sentence else "without a sentence"] += 1
        elif not path.is_file() or path.stat().st_size == 0:
            count["empty clip" if path.is_file() else "missing clip"] += 1
        else:
            # A speaker is a hash of 128 digits; the first 16 are unique.
            speaker = voice[name]["client_id"][:16]
            sets[part].append(
                Clip(
                    id=f"{speaker}-{path.stem}",
                    speaker=speaker,
                    source=path,
                    text=sentence,
                    translations=((target, translation),),
                )
            )
    if count[UNLISTED] > MOST_UNLISTED * len(seen):
        raise UserError(
            f"{root / source / 'validated.tsv'}: {count[UNLISTED]} of the {len(seen)} clips that "
            f"{listed.name} translates are not in it; CoVoST 2 is made of Common Voice 4 "
            "(cv-corpus-4-2019-12-10)"
        )
    return sets


def list_of(root: Path, source: str, target: str) -> Path:
    """The list of translations.

    Raises:
        UserError: there is none for these languages; says which there are.
    """
    name = f"covost_v2.{source}_{target}.tsv"
    for folder in (root, root / source):
        if (folder / name).is_file():
            return folder / name
    found = [*root.glob("covost_v2.*.tsv"), *root.glob("*/covost_v2.*.tsv")]
    raise UserError(f"{root}: no translations {nearest(name, [path.name for path in found])}")


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    source, target = stage.args.source, stage.args.target
    root = stage.corpus(f"{source}/validated.tsv", f"{source}/clips")
    listed = list_of(root, source, target)
    if stage.is_current([root / source / "validated.tsv", listed], [source, target]):
        return
    count: Counter[str] = Counter()
    sets = read_clips(root, source, target, listed, count)
    print_left_out(count)
    for part, clips in sets.items():
        if not clips:
            raise UserError(f"{listed}: no clip of {part} is left ({dict(count)})")
    # The sets are official: a text such as "Yes." may be in several.
    stage.write(stage.convert_sets(sets), overlapping=sets)


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER, add_options=add_languages)
