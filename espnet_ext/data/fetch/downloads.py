"""Keeps a fetched file, once it is the one that was wanted."""

import os
from collections.abc import Callable
from pathlib import Path

from espnet_ext.files import scratch_folder, sha256_file


def fetched(
    path: Path, sha256: str, get: Callable[[Path], Path], check: Callable[[Path], None]
) -> Path:
    """Return ``path``, after fetching the file if it is not there with this digest.

    Args:
        path: where it is kept.
        sha256: of its content.
        get: fetches it into a folder that is removed afterwards; returns where it is.
        check: raises if that is another file; nothing is kept then.
    """
    if path.is_file() and sha256_file(path) == sha256:
        return path
    with scratch_folder(path) as scratch:
        found = get(scratch.resolve())
        check(found)
        os.replace(found, path)
    return path
