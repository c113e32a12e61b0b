"""Rules that recipes share: the set of a text, and clips that cannot hold their text."""

import hashlib


def split_of(corpus: str, key: str, test: float = 0.10, dev: float = 0.05) -> str:
    """Return ``train``, ``dev`` or ``test`` for a key, the same on every machine.

    Args:
        corpus: name of the corpus; another name gives another split.
        key: what may not be in two sets: the normalised text, or the speaker.
        test, dev: shares of the keys.
    """
    digest = hashlib.sha1(f"{corpus}|{key}".encode(), usedforsecurity=False).hexdigest()
    bucket = int(digest[:8], 16) / 2**32
    if bucket < test:
        return "test"
    return "dev" if bucket < test + dev else "train"


def implausible(text: str, seconds: float, most: float = 20) -> str | None:
    """Return why a clip cannot hold its text, or None.

    Limits: 0.25 s to ``most`` seconds; at most 22 characters a second; at least 1.5 characters a
    second for texts of more than 3 characters.
    """
    if seconds < 0.25:
        return "shorter than 0.25 s"
    if seconds > most:
        return f"longer than {most:g} s"
    if len(text) > 22 * seconds:
        return "more than 22 characters a second"
    if len(text) > 3 and len(text) < 1.5 * seconds:
        return "less than 1.5 characters a second"
    return None
