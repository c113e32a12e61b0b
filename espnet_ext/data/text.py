"""Text of utterances: the normalisation that data preparation and scoring share."""

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
    """Return ``text`` normalised as NORMALISATION says; empty if no word is left.

    Stage directions (``*sigh*``, ``(whispers)``) are not spoken, so they are removed; a bracket
    that nothing closes is a punctuation mark. Combining marks stay, for scripts with such vowels.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = _ASIDES.sub(" ", text)
    return " ".join("".join(c if _is_kept(c) else " " for c in text).split())


def without_asides(text: str) -> str:
    """Return a text without what is in brackets or between stars; case and punctuation stay."""
    return collapse_blanks(_ASIDES.sub(" ", unicodedata.normalize("NFC", text)))


def collapse_blanks(text: str) -> str:
    """Return a text with one blank between words, otherwise as it is."""
    return " ".join(text.split())


def _is_kept(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character == "'"
