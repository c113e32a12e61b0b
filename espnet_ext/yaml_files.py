"""Reading YAML: one mapping a file, as data; a mistake is one line that names the file."""

from pathlib import Path
from typing import Any

import yaml

from espnet_ext.errors import UserError


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file of keys and values; an empty file is an empty mapping.

    Raises:
        UserError: it is not UTF-8 or YAML, not a mapping, or has a key that is not a word.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: keys are words, not {key!r}")
    return content
