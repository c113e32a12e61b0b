"""Options of a method as a config writes them: typed fields, one line for a wrong value."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import Field, ValidationError

from espnet_ext.errors import UserError, nearest, unknown_option
from espnet_ext.validation import Strict

WHOLE = "a whole number of at least 0"
POSITIVE = "a whole number of at least 1"
NUMBER = "a number of at least 0"
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Number = Annotated[int | float, Field(ge=0)]  # a union, so that 4 is not written back as 4.0


class Options(Strict):
    """Base class of the options of a method.

    The ``description`` of a field completes "<method>: <field> must be ..."; a ``Literal`` needs
    none.
    """

    method: ClassVar[str]  # its name in messages

    def __init__(self, **values: Any):
        """Check the values; a UserError names the first that is unknown or wrong."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise UserError(self._problem(name, values[name])) from None

    @classmethod
    def _problem(cls, name: str, value: Any) -> str:
        fields = cls.model_fields
        if name not in fields:
            return unknown_option(cls.method, name, fields)
        if get_origin(fields[name].annotation) is Literal:
            choices = get_args(fields[name].annotation)
            return f"{cls.method}: unknown {name} {nearest(str(value), choices)}"
        return f"{cls.method}: {name} must be {fields[name].description}, not {value!r}"

    @classmethod
    def parse(cls, conf: Any) -> Self:
        """Build the options from a section of a config; may raise UserError."""
        if not isinstance(conf, Mapping):
            raise UserError(f"{cls.method}: expected options as keys and values, not {conf!r}")
        return cls(**{str(key): value for key, value in conf.items()})
