#!/usr/bin/env python3
"""Prepare MSLT (Federmann and Lewis, IWSLT 2016): Skype calls and their translations.

Example:
  python local/data.py --corpus /data/MSLT_Corpus --source en --target zh-CN

Reads Data/MSLT_{Test,Dev}_<SOURCE>_<date>/ with, for every utterance, .T0.<source>.wav (audio),
.T2.<source>.snt (transcript, cleaned) and .T3.<target>.snt (translation); .snt is UTF-16 with a
byte order mark. Writes 16 kHz mono FLAC to data/audio and data/{dev,test,dev_test}, each with the
words spoken (text) and the translation (text.<target>); dev_test is both together, as the paper of
ResidualTransformer reports. There is nothing to train on. Every utterance is a speaker of its own:
who speaks is not known. Left out, and counted: utterances with an empty transcript or translation.

The target is named as the trained model names it; MSLT names languages without regions, so zh-CN
is its zh. In file names Japanese and Chinese are spelled ja or jp, zh or ch.
"""

import re
from collections import Counter
from pathlib import Path

from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main, print_left_out
from espnet_ext.data.corpora.translation import add_languages
from espnet_ext.data.text import collapse_blanks
from espnet_ext.errors import UserError, nearest

# File names have the second code where Japanese or Chinese is spoken; both are accepted.
SPELLINGS = {"ja": ("ja", "jp"), "zh": ("zh", "ch")}
FOLDER = "the folder MSLT_Corpus, which holds Data/MSLT_Test_<SOURCE>_<date>"


def read_snt(path: Path) -> str:
    """Read a file of one text, UTF-16 by its byte order mark, or UTF-8.

    Raises:
        UserError: missing, or neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return collapse_blanks(data.decode("utf-16" if utf16 else "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as {error.encoding} ({error.reason})") from None


def primary(language: str) -> str:
    """Return a language without its region."""
    return re.split("[-_]", language)[0].lower()


def spelling(folder: Path, kind: str, language: str) -> str:
    """Return how the names of the files of a kind (T0, T2, T3) spell a language.

    Raises:
        UserError: there are two spellings.
    """
    spellings = SPELLINGS.get(primary(language), ())
    # A name that begins with a dot is macOS's, not an utterance's.
    found = [name for name in spellings if any(folder.glob(f"[!.]*.{kind}.{name}.*"))]
    if len(found) > 1:
        raise UserError(f"{folder}: {kind} is spelled {' and '.join(found)}; rename one's files")
    return found[0] if found else primary(language)


def folder_of(root: Path, part: str, source: str) -> Path:
    """Return Data/MSLT_<part>_<SOURCE>_<date> of the newest date.

    Raises:
        UserError: there is none; says which languages there are.
    """
    found = sorted(path for path in (root / "Data").glob(f"MSLT_{part}_*_*") if path.is_dir())
    mine = [path for path in found if path.name.split("_")[2].lower() == primary(source)]
    if not mine:
        known = {path.name.split("_")[2].lower() for path in found}
        raise UserError(f"{root}/Data: no MSLT_{part} of language {nearest(source, known)}")
    return max(mine, key=lambda path: path.name.split("_")[3])


def read_part(folder: Path, source: str, target: str, count: Counter[str]) -> list[Clip]:
    """Read the utterances of a folder.

    Raises:
        UserError: no audio, a file of an utterance is missing, or not one is translated into the
            target; says which languages there are.
    """
    spoken, written = (spelling(folder, kind, source) for kind in ("T0", "T2"))
    wanted = spelling(folder, "T3", target)
    known = {path.name.split(".")[2] for path in folder.glob("*.T3.*.snt")}
    if wanted not in known:
        raise UserError(f"{folder}: no translations into {nearest(wanted, known)}")
    clips = []
    for audio in sorted(folder.glob(f"*.T0.{spoken}.wav")):
        name = audio.name.partition(".")[0]
        if name.startswith("._"):
            continue
        text = read_snt(folder / f"{name}.T2.{written}.snt")
        translation = read_snt(folder / f"{name}.T3.{wanted}.snt")
        if not text or not translation:
            count[f"{folder.name} without a {'translation' if text else 'transcript'}"] += 1
            continue
        key = name.lower().replace("_", "-")
        translations = ((target, translation),)
        clips.append(Clip(id=key, speaker=key, source=audio, text=text, translations=translations))
    if not clips:
        raise UserError(f"{folder}: no utterance <name>.T0.{spoken}.wav with texts in it")
    return clips


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    root, source, target = stage.corpus("Data"), stage.args.source, stage.args.target
    folders = {part.lower(): folder_of(root, part, source) for part in ("Dev", "Test")}
    inputs = sorted(path for folder in folders.values() for path in folder.glob("*.snt"))
    if stage.is_current(inputs, [source, target]):
        return
    count: Counter[str] = Counter()
    sets = {part: read_part(f, source, target, count) for part, f in folders.items()}
    print_left_out(count)
    stage.write(stage.convert_sets({**sets, "dev_test": [*sets["dev"], *sets["test"]]}))


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER, add_options=add_languages)
