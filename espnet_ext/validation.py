"""Values of files, checked by pydantic; each mistake is one line that names the nearest key.

A model is a subclass of ``Strict``, or a pydantic dataclass with the config ``STRICT``: unknown
keys, other types and numbers that are not finite are refused. A field's ``description`` completes
"<key> must be ..." where pydantic's message would not help.
"""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from espnet_ext.errors import UserError, nearest
from espnet_ext.files import read_json

type Location = tuple[int | str, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "list_type": "a list",
}


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Strict(BaseModel):
    """A mapping with exactly these keys and types; it cannot be changed."""

    model_config = ConfigDict(frozen=True, **STRICT)


def parse[M: BaseModel](model: type[M], value: Any, source: str | Path) -> M:
    """Return ``value``, read from or meant for ``source``, as a ``model``.

    Raises:
        UserError: one line that names the first key that does not fit.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{source}: {next(problems(model, error))[1]}") from None


def read_model[M: BaseModel](model: type[M], path: Path, again: str) -> M:
    """Read a JSON file as a ``model``.

    Args:
        model: what the file holds.
        path: the file.
        again: what to do about a damaged file, for the message.

    Raises:
        UserError: the file is not JSON or does not fit.
    """
    try:
        value = read_json(path)
    except ValueError:
        raise UserError(f"{path}: not valid JSON; {again}") from None
    return parse(model, value, path)


def problems(model: type, error: ValidationError) -> Iterator[tuple[Location, str]]:
    """Yield the place and one line for each problem that pydantic found in a ``model``."""
    for found in error.errors():
        place = tuple(part for part in found["loc"] if not _is_tag(part))
        yield place, _line(model, place, found)


def _line(model: type, place: Location, found: Any) -> str:
    where, value, kind = dotted(place), found["input"], found["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        inside = f" in {dotted(place[:-1])}" if place[:-1] else ""
        return f"unknown key {nearest(str(place[-1]), _fields(model, place[:-1]))}{inside}"
    if kind == "missing":
        return f"missing key {where}"
    if kind == "literal_error":
        return f"unknown {where} {nearest(str(value), _choices(model, place))}"
    if kind == "value_error":  # raised by a validator of ours
        return f"{where}: {found['ctx']['error']}" if where else str(found["ctx"]["error"])
    subject = where or "it"
    for depth in range(len(place), 0, -1):
        described = _description(model, place[:depth])
        if described is not None and depth == len(place):
            return f"{subject} must be {described}, not {value!r}"
        if described is not None:
            return f"{dotted(place[:depth])} must be {described}; {subject} is {value!r}"
    if kind in _EXPECTED:
        return f"{subject} must be {_EXPECTED[kind]}, not {value!r}"
    return f"{subject}: {found['msg'][0].lower()}{found['msg'][1:]}, not {value!r}"


def dotted(place: Location) -> str:
    """A place as a reader writes it: scores[0].wer.value."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _is_tag(part: int | str) -> bool:
    """True for what pydantic adds to a place: the member of a union that was tried."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "dict"))


def _fields(model: Any, place: Location) -> list[str]:
    """Names of the fields of the model at ``place``."""
    for part in place:
        model = _inner(model, part)
    return [name for one in _models(model) for name in one.__pydantic_fields__]


def _inner(annotation: Any, part: int | str) -> Any:
    """The annotation of ``part`` of a value that has ``annotation``."""
    for model in _models(annotation):
        if isinstance(part, str) and part in model.__pydantic_fields__:
            return model.__pydantic_fields__[part].annotation
    for option in _options(annotation):
        arguments = get_args(option)
        if arguments and get_origin(option) not in (Union, UnionType):
            return arguments[-1]
    return None


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself."""
    if isinstance(annotation, TypeAliasType):
        yield from _options(annotation.__value__)
    elif get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    else:
        yield annotation


def _models(annotation: Any) -> list[Any]:
    return [option for option in _options(annotation) if hasattr(option, "__pydantic_fields__")]


def _field(model: Any, place: Location) -> Any:
    """The pydantic field at ``place``, None for an item of a list or mapping."""
    for part in place[:-1]:
        model = _inner(model, part)
    fields = (m.__pydantic_fields__.get(place[-1]) for m in _models(model)) if place else ()
    return next((field for field in fields if field is not None), None)


def _description(model: type, place: Location) -> str | None:
    field = _field(model, place)
    return None if field is None else field.description


def _choices(model: type, place: Location) -> list[str]:
    field = _field(model, place)
    return [str(choice) for o in _options(field.annotation) for choice in get_args(o)]
