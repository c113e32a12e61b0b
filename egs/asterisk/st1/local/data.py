#!/usr/bin/env python3
"""Prepare the voice prompts of the telephone exchange Asterisk: translation into English.

Example:
  python local/data.py --out data --downloads downloads
  python local/data.py --targets "en fr"      # French translations besides the English
  python local/data.py --packages DIR         # DIR holds the eleven .deb

Writes 16 kHz mono FLAC (of 8 kHz telephone audio) to data/audio and these sets, each with the words
of the prompt (text) and their translation (text.en):
  data/{train,dev,test}    one voice a language (Spanish, French, Italian, Russian); no prompt is in
                           two of them
  data/unseen              prompts of test, spoken by two voices (French, Italian) of no other set
  data/retrieval_like      prompts of train, spoken by these two voices: who recognises the prompt
                           can look its translation up, so it is no test of translating

Rules, in this order:
  1. A sound and its text belong together by their id, and so do prompts of different languages.
     The two other voices have no texts of their own: theirs are those of their language.
  2. Words in brackets are removed from all texts. A prompt is left out if a text of it has no word
     or most of its letters are of another script (data/corpora/translation.py), if it is a
     tone (NO_SPEECH), or if its sound is byte for byte an earlier one.
  3. Too short or long for the text, or in itself: left out (data/corpora/splits.py). So is a
     prompt of the two other voices that lasts less than 0.6 or more than 1.6 times as long as in
     its language's first voice: they often read another wording.
  4. Train, dev or test by a hash of the normalised English prompt: all its languages are in one.
  5. Of dev and test, prompts whose text or translation train has too are left out; so are of
     unseen. Of retrieval_like, those that are not in train.
"""

import gzip
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ext.data import text
from espnet_ext.data.corpora import translation
from espnet_ext.data.corpora.clips import Clip, Raw
from espnet_ext.data.corpora.stage import DataStage, main
from espnet_ext.data.corpora.translation import Line
from espnet_ext.data.fetch import debian
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.errors import UserError

VERSION = "1.6.1-1"
TEXTS = {
    "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
    "it": "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
    "ru": "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
}
SOUNDS = {
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}
PACKAGES = {
    **{
        name: debian.Package(f"asterisk-core-sounds-{name}", VERSION, d)
        for name, d in TEXTS.items()
    },
    **{
        f"{name} sounds": debian.Package(f"asterisk-core-sounds-{name}-wav", VERSION, digest)
        for name, digest in SOUNDS.items()
    },
    "menardi": debian.Package(
        "asterisk-prompt-it-menardi-wav",
        "1:1.4.22+mm20110907-3.1",
        "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
    ),
    "armelle": debian.Package(
        "asterisk-prompt-fr-armelle",
        "20070613-2.2",
        "162570b1a9b3512a98f06b89f60c7c17cf1b9b52297315adca9a4e5be728bea3",
    ),
}
FOLDER = "usr/share/asterisk/sounds"
# Language, voice, name of the package, folder of the voice.
VOICES = (
    ("es", "allison", "es sounds", "es_MX_f_Allison"),
    ("fr", "june", "fr sounds", "fr_CA_f_June"),
    ("it", "carlo", "it sounds", "it_IT_m_Carlo"),
    ("ru", "ivrvoice", "ru sounds", "ru_RU_f_IvrvoiceRU"),
)
OTHER_VOICES = (
    ("it", "menardi", "menardi", "it_IT_f_Menardi"),
    ("fr", "armelle", "armelle", "fr"),
)
CORPUS = "asterisk"  # seeds the hash of the splits
RATIO = (0.6, 1.6)
GSM = Raw(8000, "GSM610")  # as telephone exchanges keep it
# Tones and silence; some texts describe them in plain words.
NO_SPEECH = re.compile(r"beep|beeperr|confbridge-(join|leave)|(a|de)scending-2tone|silence/.*")
# What the pinned packages hold; anything else means that a reader or a rule was changed.
CONTENTS = {
    "allison sounds": 511,
    "allison without text or translation": 57,
    "june sounds": 545,
    "june without text or translation": 32,
    "carlo sounds": 583,
    "carlo without text or translation": 36,
    "ivrvoice sounds": 560,
    "ivrvoice without text or translation": 12,
    "es test by the hash": 39,
    "fr test by the hash": 49,
    "it test by the hash": 52,
    "ru test by the hash": 52,
    "menardi sounds": 539,
    "menardi without text or translation": 59,
    "other it-menardi of another length": 13,
    "armelle sounds": 327,
    "armelle without text or translation": 11,
    "other fr-armelle of another length": 77,
}
WRITTEN = {"train": 1724, "dev": 84, "test": 185, "unseen": 57, "retrieval_like": 592}


def read_texts(path: Path) -> dict[str, str]:
    """Read core-sounds-<language>.txt.gz: prompts by id, in lower case, without asides.

    Lines are ``id: text``; those from ``;`` are comments, and one text starts with its own id.

    Raises:
        UserError: not gzip, not UTF-8, or a line without an id.
    """
    try:
        content = gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as gzipped UTF-8 ({error})") from None
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith(";"):
            continue
        name, colon, words = line.partition(":")
        if not colon:
            raise UserError(f"{path}: line {number} is no 'id: text': {line[:40]}")
        name = name.strip()
        words = words.strip().removeprefix(f"{name}:")
        found.setdefault(name.lower(), text.without_asides(words))
    return found


def pair(
    voice: Sequence[str],
    sounds: Mapping[str, Path],
    texts: Mapping[str, Mapping[str, str]],
    targets: Sequence[str],
    count: Counter[str],
) -> list[Line]:
    """Apply rule 1 to the sounds <id>.wav or <id>.gsm of a voice."""
    language, name, *_ = voice
    lines = []
    for file, path in sounds.items():
        key = file.rpartition(".")[0].lower()
        if NO_SPEECH.fullmatch(key):
            continue
        count[f"{name} sounds"] += 1
        if key not in texts[language] or any(key not in texts[t] for t in targets):
            count[f"{name} without text or translation"] += 1
            continue
        clip = Clip(
            id=f"{language}-{name}-{key.replace('/', '_')}",
            speaker=f"{language}-{name}",
            source=path,
            raw=GSM if path.suffix == ".gsm" else None,
            text=texts[language][key],
            translations=tuple((target, texts[target][key]) for target in targets),
        )
        lines.append(Line(clip, language, texts["en"].get(key, "")))
    return lines


def prompt(utterance: Utterance) -> tuple[str, str]:
    """Return language and id of the prompt of an utterance."""
    language, _, name = utterance.id.split("-", 2)
    return language, name


def other_sets(
    lines: Sequence[Line],
    utterances: Sequence[Utterance],
    first: Mapping[tuple[str, str], float],
    parts: Mapping[str, Sequence[tuple[Line, Utterance]]],
    count: Counter[str],
) -> dict[str, list[Utterance]]:
    """Apply rules 3 to 5 to the two other voices; ``first`` are seconds of the first."""
    fitting = []
    for line, utterance in zip(lines, utterances, strict=True):
        seconds = first.get(prompt(utterance))
        if seconds is None or not RATIO[0] <= utterance.seconds / seconds <= RATIO[1]:
            count[f"{utterance.speaker} of another length"] += 1
        else:
            fitting.append((line, utterance))
    divided = translation.divide(
        CORPUS, [line for line, _ in fitting], [u for _, u in fitting], count
    )
    trained = {prompt(u) for _, u in parts["train"]}
    known = {key for line, _ in parts["train"] for key in translation.texts_of(line)}
    unseen = [u for line, u in divided["test"] if not translation.texts_of(line) & known]
    return {
        "unseen": unseen,
        "retrieval_like": [u for _, u in divided["train"] if prompt(u) in trained],
    }


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    targets = translation.known_targets(stage.args.targets, TEXTS)
    if stage.is_current(settings=[targets]):
        return
    debs = {name: stage.fetch(package) for name, package in PACKAGES.items()}
    texts = {}
    for name in TEXTS:
        file = f"core-sounds-{name}.txt.gz"
        member = f"usr/share/doc/{PACKAGES[name].name}/{file}"
        texts[name] = read_texts(debian.unpack_member(debs[name], member, stage.downloads / file))
    count: Counter[str] = Counter()
    lines: dict[bool, list[Line]] = {True: [], False: []}
    for voice in (*VOICES, *OTHER_VOICES):
        _, name, deb, folder = voice
        target = stage.downloads / f"voice_{name}"
        sounds = debian.unpack_folder(debs[deb], f"{FOLDER}/{folder}", target)
        lines[voice in VOICES] += pair(voice, sounds, texts, targets, count)
    others: Counter[str] = Counter()
    own, other = translation.keep(lines[True], count), translation.keep(lines[False], others)
    found = stage.convert([line.clip for line in own + other])
    core, rest = found[: len(own)], found[len(own) :]
    parts = translation.divide(CORPUS, own, core, count)
    sets = {part: [u for _, u in pairs] for part, pairs in parts.items()}
    sets |= other_sets(other, rest, {prompt(u): u.seconds for u in core}, parts, others)
    count.update({f"other {what}": n for what, n in others.items()})
    print("met: " + ", ".join(f"{what} {n}" for what, n in sorted(count.items())))
    if targets == ("en",):
        stage.expect(CONTENTS, count)
        stage.expect(WRITTEN, {name: len(items) for name, items in sets.items()})
    stage.write(sets, overlapping=("retrieval_like",))


if __name__ == "__main__":
    packages = list(PACKAGES.values())
    main(__doc__, prepare, packages=packages, add_options=translation.add_targets)
