"""Text normalisation and splits that depend only on the text, shared by the recipes."""

import hashlib
import re
import unicodedata

_ASIDES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\*[^*]*\*")


def normalise(text: str) -> str:
    """Return ``text`` in NFKC and lower case, reduced to words.

    Asides in brackets or stars are dropped; letters, marks, decimal digits and apostrophes are
    kept, everything else separates words; single blanks between words, none at the ends.
    """
    text = _ASIDES.sub(" ", unicodedata.normalize("NFKC", text).lower())
    kept = "".join(char if _is_kept(char) else " " for char in text)
    return " ".join(word for word in kept.split() if word.strip("'"))


def _is_kept(char: str) -> bool:
    category = unicodedata.category(char)
    return char == "'" or category[0] in "LM" or category == "Nd"


def split_of(corpus: str, key: str, test: float = 0.10, dev: float = 0.05) -> str:
    """Return ``train``, ``dev`` or ``test`` for a key, the same for ever on every machine.

    The key is the normalised text, so that one text never falls into two sets.
    """
    digest = hashlib.sha1(f"{corpus}|{key}".encode(), usedforsecurity=False).hexdigest()
    bucket = int(digest[:8], 16) / 2**32
    if bucket < test:
        return "test"
    return "dev" if bucket < test + dev else "train"


def implausible(text: str, seconds: float) -> str | None:
    """Say why a clip cannot hold its text, or None.

    Limits: 0.25 s to 20 s; at most 22 characters a second; at least 1.5 characters a second for
    texts of more than 3 characters.
    """
    if seconds < 0.25:
        return "shorter than 0.25 s"
    if seconds > 20:
        return "longer than 20 s"
    if len(text) > 22 * seconds:
        return "more than 22 characters a second"
    if len(text) > 3 and len(text) < 1.5 * seconds:
        return "less than 1.5 characters a second"
    return None
