"""Text of utterances: the one normalisation that data preparation and scoring share."""

import re
import unicodedata

NORMALISATION = (
    "nfkc_lower: NFKC; lower case; drop [..] (..) <..> *..*; keep letters, marks, digits and "
    "the apostrophe (U+2019 and U+02BC become it); every other character is a blank; "
    "collapse blanks"
)

_ASIDES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\*[^*]*\*")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})


def normalise_text(text: str) -> str:
    """Return ``text`` normalised as NORMALISATION says; empty if nothing is left to speak.

    Stage directions (``*sigh*``, ``(whispers)``) are not spoken and go; a bracket that is not
    closed is only a punctuation mark. A word keeps its marks, so scripts with combining vowels
    stay whole.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = _ASIDES.sub(" ", text)
    return " ".join("".join(c if _is_kept(c) else " " for c in text).split())


def without_asides(text: str) -> str:
    """Return a text, case and punctuation kept, without what is in brackets or between stars."""
    return collapse_blanks(_ASIDES.sub(" ", unicodedata.normalize("NFC", text)))


def collapse_blanks(text: str) -> str:
    """Return a text as it is, but for one blank between words: translations are scored so."""
    return " ".join(text.split())


def _is_kept(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character == "'"
