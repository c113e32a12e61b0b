"""Languages by their codes (ISO 639-1, 639-2, 639-3) and tags (BCP 47), and their scripts."""

from pathlib import Path

from espnet_ext.errors import UserError


def script_of(tag: str) -> str:
    """Return the script that a language is written in, as ISO 15924 names it.

    It is that of the tag, or else the likely one: Hans of zh, zho, chi, cmn and ZH-cn, Hant of
    zh-TW and yue, Thai of th and tha.

    Raises:
        UserError: no such language.
    """
    import langcodes  # a tenth of a second

    try:
        language = langcodes.Language.get(tag)
        known = language.is_valid() and language.language not in (None, "und")
    except ValueError:
        known = False
    if not known or not str(language.language).isalpha():
        raise UserError(f"no language '{tag}'; give its code or tag, as in en, eng or zh-CN")
    return str(language.maximize().script)


def code_of(tag: str) -> str:
    """Return the code of a language without script and region: zh of zh-CN."""
    import langcodes

    try:
        return langcodes.Language.get(tag).language or tag
    except ValueError:
        return tag


def text_in(folder: Path, tag: str) -> Path:
    """Return ``text.<tag>`` of a data directory, or the only text there in that language."""
    path = folder / f"text.{tag}"
    if path.is_file():
        return path
    wanted = _standard(tag)
    same = [other for other in folder.glob("text.*") if _standard(other.suffix[1:]) == wanted]
    return same[0] if len(same) == 1 else path


def _standard(tag: str) -> str:
    import langcodes

    try:
        return langcodes.standardize_tag(tag, macro=True)
    except ValueError:
        return tag
