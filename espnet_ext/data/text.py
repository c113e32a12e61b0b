"""Text of utterances: the normalisation that data preparation and scoring share."""

import re
import unicodedata

NORMALISATION = (
    "nfkc_lower_2: NFKC; lower case; marks typed for an apostrophe become one; keep letters, "
    "digits, the apostrophe, and marks after these; drop format characters; every other "
    "character is a blank; collapse blanks"
)

# What is typed for an apostrophe: acute and grave accents, primes, quotation marks, letters.
# SentencePiece writes an unknown piece as U+2047, which NFKC would turn into question marks.
_REPLACED = str.maketrans(
    dict.fromkeys("\u00b4\u02b9\u02bb\u02bc\u02bd\u02ca\u02cb\u2018\u2019\u201b\u2032\uff07`", "'")
    | {"\u0130": "i", "\u2047": " <unk> "}
)
_NO_ASCII_WORD = re.compile("[^a-z0-9']+")
# At most 200 characters in brackets or between stars, which begin and end a word and, but for [ ],
# touch what is inside. So none of these is an aside: 2 * 3 * 4, f*** you s***, a < b and b > c,
# a :( that :) follows.
_ASIDES = re.compile(
    r"(?<!\S)(?:\[[^][]{0,200}\]|\((?!\s)[^()]{0,200}(?<!\s)\)"
    r"|<(?!\s)[^<>]{0,200}(?<!\s)>|\*(?![\s*])[^*]{0,200}(?<!\s)\*)(?!\w)"
)


def normalise_text(text: str) -> str:
    """Return ``text`` normalised as NORMALISATION says; empty if no word is left.

    No word is removed: what a corpus writes and nobody says is for its reader
    (``without_asides``), and an unknown token of a hypothesis is a word. Combining marks stay,
    for scripts with such vowels. Joiners and direction marks go, since writers leave them out.
    """
    if text.isascii():  # ten times as fast, and the same
        return collapse_blanks(_NO_ASCII_WORD.sub(" ", text.replace("`", "'").lower()))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFC", text).translate(_REPLACED))
    kept: list[str] = []
    for character in unicodedata.normalize("NFKC", text.lower()):
        category = unicodedata.category(character)
        if category[0] == "L" or category == "Nd" or character == "'":
            kept.append(character)
        elif category[0] == "M":
            if kept and kept[-1] != " ":  # else a mark on a symbol, which is no word
                kept.append(character)
        elif category != "Cf":
            kept.append(" ")
    return collapse_blanks("".join(kept))


def without_asides(text: str) -> str:
    """Return a text without what nobody says: ``[door]``, ``(whispers)``, ``<noise>``, ``*sigh*``.

    For readers of corpora that write such asides, never for hypotheses. Case and punctuation stay.
    A bracket that nothing closes stays, and so does one inside a word or around a long text.
    """
    return collapse_blanks(_ASIDES.sub(" ", unicodedata.normalize("NFC", text)))


def collapse_blanks(text: str) -> str:
    """Return a text with one blank between words, otherwise as it is."""
    return " ".join(text.split())
