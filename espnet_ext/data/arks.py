"""Matrices in Kaldi arks, by what a ``feats.scp`` says: a file and an offset, never a command."""

import re
from pathlib import Path

import numpy as np

from espnet_ext.errors import UserError

_PLACE = re.compile(r"([^|\0\n]+):(\d+)")


def ark_place(where: str, name: str) -> tuple[Path, int]:
    """Return the ark and the offset of a matrix.

    Kaldi's tools, and kaldiio, run a place that ends or begins with ``|`` as a shell command.

    Args:
        where: ``path:offset``.
        name: of the utterance and its list, in an error.

    Raises:
        UserError: anything but an offset inside an existing regular file.
    """
    found = _PLACE.fullmatch(where)
    if found is None or found[1].strip() in ("", "-"):
        raise UserError(f"{name}: expected 'ark:offset', not '{where[:60]}'")
    path, offset = Path(found[1]), int(found[2])
    if not path.is_file():
        raise UserError(f"{name}: there is no {path}")
    if offset >= path.stat().st_size:
        raise UserError(f"{name}: it is not in {path}")
    return path, offset


def read_matrix(where: str, name: str) -> np.ndarray:
    """Read a matrix (frames, width) by its place; arguments are those of ``ark_place``.

    Raises:
        UserError: what ``ark_place`` raises, a damaged ark, or values that are not finite.
    """
    import kaldiio

    path, offset = ark_place(where, name)
    try:
        matrix = kaldiio.load_mat(f"{path}:{offset}")
    except Exception as error:  # kaldiio raises many types for a damaged ark
        raise UserError(
            f"{name}: cannot read {where} ({type(error).__name__}); remove {path.parent} and run "
            "stage 2"
        ) from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise UserError(f"{name}: {where} is no matrix of finite numbers; run stage 2 again")
    return matrix
