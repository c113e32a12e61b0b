"""Values of files, checked by pydantic; each mistake is one line that names the nearest key.

A model is a subclass of ``Strict``, or a pydantic dataclass with the config ``STRICT``: unknown
keys, other types and numbers that are not finite are refused. A field's ``description`` completes
"<key> must be ..." where pydantic's message would not help; so does ``ExpectedError``, for types
that several fields share.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

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
_QUOTE = "'"
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_OR = "[or "  # begins the tag of a type that a fixed word may replace


class ExpectedError(ValueError):
    """A value is not what the text says: "<key> must be <text>, not <value>"."""


class InnerError(ValueError):
    """Something inside a value is wrong; the text begins with its place there."""


def _text(value: str) -> str:
    if not value.strip():
        raise ExpectedError("a text that is not empty")
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ExpectedError("a text of one line, without control characters")
    return value


def _count(value: int) -> int:
    if value < 0:
        raise ExpectedError("a whole number, 0 or more")
    return value


def _number(value: float, handler: ValidatorFunctionWrapHandler) -> float:
    handler(value)
    return value  # a whole number stays one


def _interval(value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[float, float]:
    try:
        low, high = handler(value)
    except ValidationError:
        raise ExpectedError("[low, high], two finite numbers") from None
    if low > high:
        raise ExpectedError("[low, high], low end first")
    return low, high


def _json(value: Any, place: str = "") -> Any:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InnerError(f"{place} has the key {key!r}, which is not a string")
            _json(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _json(item, f"{place}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InnerError(f"{place} must be a finite number, not {value!r}")
    elif not isinstance(value, str | int | None):
        raise InnerError(f"{place} holds {value!r}, which JSON cannot")
    return value


Text = Annotated[str, AfterValidator(_text)]
Count = Annotated[int, AfterValidator(_count)]
Number = Annotated[float, WrapValidator(_number), PlainSerializer(lambda value: value)]
# Not strict: JSON has lists, no tuples.
Interval = Annotated[tuple[Number, Number], Field(strict=False), WrapValidator(_interval)]
Json = Annotated[Any, AfterValidator(_json)]  # a config, a machine
type Named[T] = Annotated[dict[str, T], Field(min_length=1)]
type Items[T] = Annotated[list[T], Field(min_length=1)]


def or_word(word: str) -> Discriminator:
    """Discriminate a union of a type, tagged ``"[or WORD]"``, and the word, tagged ``"[word]"``."""
    return Discriminator(lambda value: "[word]" if value == word else f"{_OR}{word}]")


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Strict(BaseModel):
    """A mapping with exactly these keys and types; it cannot be changed."""

    model_config = ConfigDict(frozen=True, **STRICT)


def parse[M: BaseModel](model: type[M], value: Any, source: str | Path, again: str = "") -> M:
    """Return ``value``, read from or meant for ``source``, as a ``model``.

    Args:
        model: what the value must fit.
        value: of JSON or YAML.
        source: for the message.
        again: what to do about a value that does not fit, for the message.

    Raises:
        UserError: one line that names the first key that does not fit.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        line = next(problems(model, error))[1]
        raise UserError(f"{source}: {line}{f'; {again}' if again else ''}") from None


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
    return parse(model, value, path, again)


def parsed(model: type, section: Mapping[Any, Any], where: str) -> tuple[Any, list[str]]:
    """Read a section of a config into a pydantic dataclass whose fields all have defaults.

    Returns:
        The section, with defaults in the place of values that do not fit, and one line for each
        of these, beginning with ``where``.
    """
    words = {key: value for key, value in section.items() if isinstance(key, str)}
    wrong = [f"{where}keys are words, not {key!r}" for key in section if key not in words]
    try:
        return model(**words), wrong
    except ValidationError as error:
        found = list(problems(model, error))
        right = {key: v for key, v in words.items() if key not in {p[0] for p, _ in found}}
        return model(**right), wrong + [f"{where}{line}" for _, line in found]


def problems(model: type, error: ValidationError) -> Iterator[tuple[Location, str]]:
    """Yield the place and one line for each problem that pydantic found in a ``model``.

    Unknown keys come first: a misspelt key is missing too.
    """
    for found in sorted(error.errors(), key=lambda found: found["type"] not in _UNKNOWN_KEY):
        place = _place(model, found)
        yield place, _line(model, place, found)


def _place(model: Any, found: Any) -> Location:
    """The place of a problem, without the tags that pydantic adds for members of unions."""
    place: list[int | str] = []
    for index, part in enumerate(found["loc"]):
        if _is_tag(part):
            continue
        inner, is_last = _inner(model, part), index == len(found["loc"]) - 1
        is_key = is_last and found["type"] in (*_UNKNOWN_KEY, "missing")
        if inner is None and _models(model) and not is_key:
            continue  # the tag of a discriminated union
        place.append(part)
        model = inner
    return tuple(place)


def _line(model: type, place: Location, found: Any) -> str:
    where, value, kind = dotted(place), found["input"], found["type"]
    if kind in _UNKNOWN_KEY:
        inside = f" in {dotted(place[:-1])}" if place[:-1] else ""
        return f"unknown key {nearest(str(place[-1]), _fields(model, place[:-1]))}{inside}"
    if kind == "missing":
        return f"missing key {where}"
    if kind == "literal_error":
        return f"unknown {where} {nearest(str(value), _choices(model, place))}"
    if kind == "union_tag_not_found":
        return f"missing key {dotted((*place, found['ctx']['discriminator'].strip(_QUOTE)))}"
    if kind == "union_tag_invalid":
        key = dotted((*place, found["ctx"]["discriminator"].strip(_QUOTE)))
        known = [tag.strip(_QUOTE) for tag in found["ctx"]["expected_tags"].split(", ")]
        return f"unknown {key} {nearest(found['ctx']['tag'], known)}"
    error = found.get("ctx", {}).get("error")  # raised by a validator of ours
    if isinstance(error, InnerError):
        return f"{where}{error}"
    if isinstance(error, ValueError) and not isinstance(error, ExpectedError):
        return f"{where}: {error}" if where else str(error)
    return _not_expected(model, place, found)


def _not_expected(model: type, place: Location, found: Any) -> str:
    """The line of a value of another kind, or out of range."""
    value, kind, subject = found["input"], found["type"], dotted(place) or "it"
    tag = str((*found["loc"], "")[-2:][0])
    instead = f" (or '{tag[len(_OR) : -1]}')" if tag.startswith(_OR) else ""
    error = found.get("ctx", {}).get("error")
    if isinstance(error, ExpectedError) or kind == "expected":  # or of a discriminator of ours
        return f"{subject} must be {error or found['msg']}, not {value!r}{instead}"
    for depth in range(len(place), 0, -1):
        described = _description(model, place[:depth])
        if described is not None and depth == len(place):
            return f"{subject} must be {described}, not {value!r}"
        if described is not None:
            return f"{dotted(place[:depth])} must be {described}; {subject} is {value!r}"
    if kind == "too_short":
        return f"{subject} must have something in it, not {value!r}{instead}"
    if kind in _EXPECTED:
        return f"{subject} must be {_EXPECTED[kind]}, not {value!r}{instead}"
    return f"{subject}: {found['msg'][0].lower()}{found['msg'][1:]}, not {value!r}{instead}"


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
    return list(dict.fromkeys(name for m in _models(model) for name in m.__pydantic_fields__))


def _inner(annotation: Any, part: int | str) -> Any:
    """The annotation of ``part`` of a value that has ``annotation``."""
    for model in _models(annotation):
        if isinstance(part, str) and part in model.__pydantic_fields__:
            return model.__pydantic_fields__[part].annotation
    for option in _options(annotation):
        arguments = get_args(option)
        if arguments:
            return arguments[-1]
    return None


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself; aliases and metadata removed."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, TypeAliasType):
        yield from _options(annotation.__value__)
    elif isinstance(origin, TypeAliasType):
        yield from _options(origin.__value__[arguments])
    elif origin is Annotated:
        yield from _options(arguments[0])
    elif origin in (Union, UnionType):
        for option in arguments:
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
