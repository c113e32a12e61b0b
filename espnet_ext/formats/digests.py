"""Digests of a deployed folder: its ``deploy.json`` has the SHA-256 of every other file in it.

They are compared whenever a file of the folder is read, since ``model.pth`` and ``config.yaml``,
which stock ESPnet reads, cannot hold theirs. They find damage and edits, not a forger who
computes digests too.
"""

from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.files import DEPLOYED, changed, read_json, sha256_file
from espnet_ext.formats.portable import located, named_files, with_tokens
from espnet_ext.yaml_files import read_mapping

KEY = "sha256"
_AGAIN = "run stage 5 again (espnet-ext deploy)"


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def refuse_changed(path: Path) -> None:
    """Compare a file with its digest, if it is in a deployed folder.

    A folder without deploy.json, such as stock ESPnet's, promises nothing.

    Raises:
        UserError: the file was changed, or the folder is of a version that wrote no digests.
    """
    holder = next((f for f in path.parents[:2] if (f / DEPLOYED).is_file()), None)
    if holder is None or not path.is_file():
        return
    record = holder / DEPLOYED
    try:
        known = read_json(record)[KEY]
        wanted = known.get(path.relative_to(holder).as_posix())
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{record} has no SHA-256 of the folder's files; {_AGAIN}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{record}: not valid JSON; {_AGAIN}") from None
    refuse_other(path, wanted, DEPLOYED, _AGAIN)


def refuse_other(path: Path, wanted: Any, record: str, remedy: str) -> None:
    """Raise UserError if the SHA-256 of a file is not that in a record; it says the remedy."""
    if wanted != sha256_file(path):
        raise changed(path, record, remedy)


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a model, with its token list and absolute paths of files next to it.

    Raises:
        UserError: as ``read_located``.
    """
    return with_tokens(read_located(path))


def read_located(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a model, with absolute paths of files next to it, tokens too.

    Raises:
        UserError: it was changed after it was deployed, or a file that it names was; it is empty,
            or is no YAML mapping.
    """
    refuse_changed(path)
    arguments = read_mapping(path, dumped=True)
    if not arguments:
        raise UserError(f"{path}: empty; it must be the config.yaml that ESPnet wrote")
    found = located(arguments, path.parent)
    for file in named_files(found):
        refuse_changed(file)
    return found
