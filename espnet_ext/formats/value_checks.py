"""Checks of the values that files of packed weights hold, when they are written and read."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espnet_ext.formats.bits import Quantised, Stored
from espnet_ext.formats.layout import TYPES
from espnet_ext.methods.codes import CODES, Coded
from espnet_ext.methods.positions import Sinusoids
from espnet_ext.methods.quantise import has_groups, largest_integer
from espnet_ext.methods.tensors import refuse_not_finite


def check_state(state: Mapping[str, Tensor | Stored]) -> None:
    """Check every value of a state.

    Raises:
        UserError: NaN or infinite entries.
        ValueError: a type that files do not hold, or integers and scale that do not fit.
    """
    for name, value in state.items():
        if isinstance(value, Coded):
            _check_coded(value, name)
        elif isinstance(value, Sinusoids):
            continue
        elif isinstance(value, Quantised):
            _check(value.scale, name)
            _check_quantised(value, name)
        else:
            _check(value, name)


def _check(tensor: Tensor, name: str) -> None:
    if str(tensor.dtype).removeprefix("torch.") not in TYPES:
        raise ValueError(f"{name} has a type that files do not hold: {tensor.dtype}")
    refuse_not_finite(tensor, name)


def _check_coded(value: Coded, name: str) -> None:
    """Check a table, and the one inside it, if any; the errors are those of ``check_state``."""
    _check(value.books, name)
    if isinstance(value.rest, Tensor):
        _check(value.rest, name)
    check_coded(value)
    if isinstance(value.rest, Coded):
        _check_coded(value.rest, name)


def _check_quantised(value: Quantised, name: str) -> None:
    """Raise ValueError unless integers and scale are such as quantisation makes."""
    check_scale(value.scale, value.ints.shape, groups=True)
    limit = largest_integer(value.bits)
    if not ((value.ints >= -limit).all() and (value.ints <= limit).all()):
        raise ValueError(f"{name} has integers that {value.bits} bits do not have")


def check_coded(value: Coded) -> None:
    """Raise ValueError unless codes (rows, parts) and codebooks (parts, 256, size) fit."""
    codes, books = value.codes, value.books
    if value.kept is not None and int(value.kept.sum()) != len(codes):
        raise ValueError(f"{len(codes)} rows for {int(value.kept.sum())} tokens")
    fits = codes.dtype == torch.uint8 and codes.dim() == 2 and books.dim() == 3
    if not fits or books.shape[:2] != (codes.shape[1], CODES):
        raise ValueError(f"codebooks {list(books.shape)} for codes {list(codes.shape)}")
    if isinstance(value.rest, Coded):
        rest = value.rest
        tokens = len(rest.codes) if rest.kept is None else len(rest.kept)
        width = books.shape[0] * books.shape[2]
        if value.kept is None or tokens + len(codes) != len(value.kept):
            raise ValueError(f"{tokens} other tokens of a table of {len(codes)} rows")
        if rest.books.dim() != 3 or rest.books.shape[0] * rest.books.shape[2] != width:
            raise ValueError(f"other tokens have rows {list(rest.books.shape)}, not of {width}")


def check_scale(scale: Tensor, shape: Sequence[int], groups: bool = False) -> None:
    """Raise ValueError unless a scale fits a weight of ``shape`` and is positive, or NaN."""
    number = scale.shape[1] if groups and has_groups(scale.shape) else 1
    fits = math.prod(shape[1:]) % number == 0
    one = [*shape[:1], *[number] * (len(shape) > 1), *[1] * (len(shape) - 2)]
    if list(scale.shape) not in ([], one) or not fits:
        raise ValueError(f"a scale of shape {list(scale.shape)} for a weight {list(shape)}")
    if (scale <= 0).any():
        raise ValueError("a scale is not positive")
