#!/usr/bin/env python3
"""Prepare the acted dialogue of the game Fish Fillets: Czech and Dutch speech, translations.

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --targets "en de"      # German translations besides the English
  python local/data.py --packages DIR         # DIR holds the three .deb

Writes 16 kHz mono FLAC to data/audio and the sets data/{train,dev,test_cs,test_nl}, each with the
words spoken (text) and their translation (text.en).

Rules, in this order:
  1. A sound and a text belong together by level and id. Sounds without a text are left out (57
     Czech, 1 Dutch), and those whose line lacks a translation into one of the targets.
  2. Words in brackets are removed from all texts. A line is left out if a text of it has no word,
     has a place for a number (%1), or is of another script (data/corpora/translation.py), or
     if its sound holds no samples (2 Dutch) or is byte for byte an earlier one.
  3. Too short or long for the text, or in itself: left out (espnet_ext/data/corpora/splits.py).
  4. Train, dev or test by a hash of the normalised English line, whatever the targets are: the
     Czech and the Dutch of a line are in one set.
  5. Of dev and test, lines whose text or translation train has too are left out.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data import text
from espnet_ext.data.corpora import translation
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.fetch import debian
from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8

VERSION = "1.0.1-1.1"
SCRIPTS = debian.Package(
    name="fillets-ng-data",
    version=VERSION,
    sha256="25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
)
SOUNDS = {
    "cs": debian.Package(
        name="fillets-ng-data-cs",
        version=VERSION,
        sha256="3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
    ),
    "nl": debian.Package(
        name="fillets-ng-data-nl",
        version=VERSION,
        sha256="afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
    ),
}
ROOT = "usr/share/games/fillets-ng"
CORPUS = "fillets"  # seeds the hash of the splits
# What the pinned packages hold; anything else means that a reader or a rule was changed.
CONTENTS = {
    "cs sounds": 1882,
    "cs without text": 3,
    "cs no words": 54,
    "cs placeholder": 21,
    "cs copies": 7,
    "cs implausible": 2,
    "cs dev by the hash": 99,
    "cs test by the hash": 178,
    "nl sounds": 1616,
    "nl without text": 1,
    "nl no samples": 2,
    "nl implausible": 2,
    "nl dev by the hash": 84,
    "nl test by the hash": 161,
}
WRITTEN = {"train": 2884, "dev": 180, "test_cs": 174, "test_nl": 154}

_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_STRING = r'"((?:[^"\\]|\\.)*)"'
_CALL = re.compile(
    rf"dialogId\s*\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)"
    rf"|dialogStr\s*\(\s*{_STRING}\s*\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Spoken:
    """A line of the game: who says it (the name of a font), in English and in another language."""

    font: str
    english: str
    text: str


def read_script(content: str, source: str) -> dict[str, Spoken]:
    """Read a file of dialogues by the ids of its lines; its language is what dialogStr gives.

    In the English file there is no dialogStr: the text is then the English one.

    Raises:
        UserError: a dialogStr without a dialogId before it.
    """
    found: dict[str, Spoken] = {}
    name = None
    for call in _CALL.finditer(_COMMENT.sub("", content)):
        key, font, english, translation = (unescape(part or "") for part in call.groups())
        if call[1] is not None:
            name = key
            found[name] = Spoken(font.removeprefix("font_"), english, english)
        elif name is None:
            raise UserError(f"{source}: a dialogStr has no dialogId before it: {translation[:40]}")
        else:
            found[name] = Spoken(found[name].font, found[name].english, translation)
            name = None
    return found


def unescape(string: str) -> str:
    """Undo Lua's escapes: a line break is a blank here."""
    return re.sub(r"\\(.)", lambda m: " " if m[1] == "n" else m[1], string, flags=re.DOTALL)


def read_scripts(files: dict[str, Path]) -> dict[str, dict[tuple[str, str], Spoken]]:
    """Read script/<level>/*dialogs_<language>.lua: lines by language and (level, id).

    Raises:
        UserError: not UTF-8, or what ``read_script`` raises.
    """
    found: dict[str, dict[tuple[str, str], Spoken]] = {}
    for name, path in files.items():
        match = re.fullmatch(r"([^/]+)/\w*?dialogs_([a-z]{2,3}(?:_[A-Z]{2})?)\.lua", name)
        if match is None:
            continue
        content = read_utf8(path)
        lines = found.setdefault(match[2], {})
        lines |= {(match[1], key): line for key, line in read_script(content, name).items()}
    return found


def pair(
    language: str,
    sounds: dict[str, Path],
    scripts: dict[str, dict[tuple[str, str], Spoken]],
    targets: Iterable[str],
    count: Counter[str],
) -> list[translation.Line]:
    """Apply rule 1 to <level>/<language>/<id>.ogg and share/<part>/<language>/<id>.ogg."""
    lines = []
    for name, path in sounds.items():
        if not re.fullmatch(rf"(share/)?[^/]+/{language}/[^/]+\.ogg", name):
            continue
        count[f"{language} sounds"] += 1
        level, key = name.split("/")[0], path.stem
        spoken = scripts[language].get((level, key))
        if spoken is None:
            count[f"{language} without text"] += 1
            continue
        found = {target: scripts[target].get((level, key)) for target in targets}
        if None in found.values():
            count[f"{language} without translation"] += 1
            continue
        translations = [(t, text.without_asides(line.text)) for t, line in found.items() if line]
        speaker = f"{language}-{spoken.font}"
        clip = Clip(
            id=f"{speaker}-{level}-{key}",
            speaker=speaker,
            source=path,
            text=text.without_asides(spoken.text),
            translations=tuple(translations),
        )
        lines.append(translation.Line(clip, language, text.without_asides(spoken.english)))
    return lines


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    if stage.is_current(settings=[stage.args.targets]):
        return
    downloads = stage.downloads
    debs = {name: stage.fetch(package) for name, package in SOUNDS.items()}
    scripts = read_scripts(
        debian.unpack_folder(stage.fetch(SCRIPTS), f"{ROOT}/script", downloads / "script")
    )
    targets = translation.known_targets(stage.args.targets, scripts)
    count: Counter[str] = Counter()
    lines = []
    for language, deb in debs.items():
        sounds = debian.unpack_folder(deb, f"{ROOT}/sound", downloads / f"sound_{language}")
        lines += pair(language, sounds, scripts, targets, count)
    lines = translation.keep(lines, count)
    utterances = stage.convert([line.clip for line in lines])
    parts = translation.divide(CORPUS, lines, utterances, count)
    sets = {part: [u for _, u in parts[part]] for part in ("train", "dev")}
    for language in SOUNDS:
        sets[f"test_{language}"] = [u for line, u in parts["test"] if line.language == language]
    print("met: " + ", ".join(f"{what} {n}" for what, n in sorted(count.items())))
    if targets == ("en",):
        stage.expect(CONTENTS, count)
        stage.expect(WRITTEN, {name: len(items) for name, items in sets.items()})
    stage.write(sets)


if __name__ == "__main__":
    packages = [SCRIPTS, *SOUNDS.values()]
    main(__doc__, prepare, packages=packages, add_options=translation.add_targets)
