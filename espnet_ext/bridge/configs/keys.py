"""Keys and values of a config, checked against the signatures of ESPnet's options and classes.

``bridge.configs.signatures`` reads the signatures once and caches them as JSON: importing ESPnet
takes many seconds. The checks here import neither torch nor ESPnet's models.
"""

import builtins
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from espnet_ext.config.recipe_errors import is_int, is_number
from espnet_ext.config.training import Config
from espnet_ext.errors import nearest, unknown_option
from espnet_ext.validation import Strict


class Option(Strict):
    """An option of ESPnet's trainer.

    Attributes:
        converter: function that reads its value from a word: of builtins, humanfriendly or
            ``espnet2.utils.types``; None: any word.
        nested: its value is a mapping.
        many: its value is a list.
        optional: its value may be null.
        choices: allowed names; None: any value.
        none_is_a_choice: null is allowed too.
    """

    converter: str | None
    nested: bool
    many: bool
    optional: bool
    choices: list[str] | None
    none_is_a_choice: bool


class Argument(Strict):
    """An argument of a constructor.

    Attributes:
        type: "int", ["list", type], ["sequence", type] or ["union", type, ...]; None: not checked.
        text: the annotation as Python writes it.
        default: "bool" or "number" where the default is one, else None.
    """

    type: Any
    text: str
    default: str | None


class Constructor(Strict):
    """The arguments that a section of the config may set."""

    arguments: dict[str, Argument]
    open: bool  # accepts any other key too


class Section(Strict):
    """A section <x>_conf and its constructors.

    Attributes:
        choice: the key <x> that chooses one; None: there is one, under the name for messages.
        default: what is chosen where the key is absent.
        decoder: the only decoder that the section is for; None: any.
        constructors: by what is chosen.
    """

    choice: str | None = None
    default: str | None = None
    decoder: str | None = None
    constructors: dict[str, Constructor]


class TaskSignatures(Strict):
    """The options and sections of one of ESPnet's tasks."""

    options: dict[str, Option]
    sections: dict[str, Section]


class Signatures(Strict):
    """What a config may say.

    Attributes:
        tasks: by name.
        compressed: for each compressed encoder its method and its plain encoder.
        methods: names of the options of each method.
    """

    tasks: dict[str, TaskSignatures]
    compressed: dict[str, list[str]]
    methods: dict[str, list[str]]

    def method_of(self, config: Config) -> str | None:
        """The compression method of the config's encoder, if it has one."""
        encoder = str(config.espnet.get("encoder", "")).lower()
        return self.compressed[encoder][0] if encoder in self.compressed else None

    def problems(self, config: Config) -> list[str]:
        """Return a line for each key or value that ESPnet or a constructor would refuse."""
        task = self.tasks[config.recipe.task]
        return [*_option_problems(config, task), *self._section_problems(config, task)]

    def _section_problems(self, config: Config, task: TaskSignatures) -> Iterator[str]:
        for key, section in task.sections.items():
            conf = config.espnet.get(key)
            owner = _owner(config, section)
            if not isinstance(conf, dict) or owner not in section.constructors:
                continue  # reported elsewhere, or absent
            constructor = section.constructors[owner]
            for name, value in conf.items():
                argument = constructor.arguments.get(name)
                if argument is not None and name in self.methods:
                    for line in self._unknown_options(name, value):
                        yield f"{key}: {name}: {line}"
                elif argument is not None:
                    if reason := _bad_argument(argument, value):
                        yield f"{key}: {name}: {reason}"
                elif name in self.methods:
                    hint = self._encoders_with(name, owner)
                    yield f"{key}: {owner} has no {name}; did you mean encoder: {hint}?"
                elif not constructor.open and not (name == "stats_file" and owner == "global_mvn"):
                    known = nearest(str(name), constructor.arguments)
                    yield f"{key}: unknown key of {owner} {known}"

    def _unknown_options(self, method: str, conf: Any) -> Iterator[str]:
        """A line for each option that a method lacks; ``Options.parse`` checks the values."""
        known = self.methods[method]
        for name in conf if isinstance(conf, dict) else ():
            if name not in known:
                yield unknown_option(method, str(name), known)

    def _encoders_with(self, method: str, owner: str) -> str:
        """Names of the encoder ``owner`` with a method, or of all encoders that the method fits."""
        base = self.compressed[owner][1] if owner in self.compressed else owner
        pairs = {name: base for name, (m, base) in self.compressed.items() if m == method}
        return next((n for n, b in pairs.items() if b == base), " or ".join(pairs))


def _owner(config: Config, section: Section) -> str:
    """The chosen constructor of a section; an empty text if the section is for another decoder."""
    if section.decoder not in (None, config.espnet.get("decoder")):
        return ""
    if section.choice is None:
        return next(iter(section.constructors))
    return str(config.espnet.get(section.choice, section.default)).lower()


def _option_problems(config: Config, task: TaskSignatures) -> Iterator[str]:
    for key, value in config.espnet.items():
        option = task.options.get(key)
        if option is None:
            known = [*task.options, "include", "exclude", "recipe"]
            yield f"unknown key {nearest(str(key), known)}"
        elif reason := _bad_value(option, value):
            yield f"{key}: {reason}"
        elif option.choices is not None:
            chosen = _converted(option, value)
            if chosen is None and option.none_is_a_choice:
                continue
            if chosen not in option.choices:
                yield f"unknown {key} {nearest(str(chosen), option.choices)}"


def _bad_value(option: Option, value: Any) -> str | None:
    """Why ``value`` cannot be that of an option, else None."""
    if option.nested:
        fits = isinstance(value, dict) or (value is None and option.optional)
        return None if fits else f"expected keys and values, not {value!r}"
    if option.many:
        return None if isinstance(value, list) else f"expected a list, not {value!r}"
    if isinstance(value, list | dict):
        return f"expected one value, not {value!r}"
    kind = option.converter or ""
    if isinstance(value, str):
        try:
            _converted(option, value)
        except (ValueError, TypeError) as error:
            return _number_hint(value) or f"{value!r} is not a value of this option ({error})"
        return None
    if value is None:
        return None if option.optional else "needs a value"
    if kind.startswith("int") and not is_int(value):
        return f"expected a whole number, not {value!r}"
    if kind.startswith("float") and not is_number(value):
        return f"expected a number, not {value!r}"
    if kind == "str2bool" and not isinstance(value, bool):
        return f"expected true or false, not {value!r}"
    if option.choices is not None:
        return f"expected a name, not {value!r}"
    return None


def _converted(option: Option, value: Any) -> Any:
    """The value that ESPnet's parser makes of a word."""
    if not isinstance(value, str) or option.converter is None:
        return value
    if option.converter == "lower":  # of names of classes: lower case, or none
        return None if value.lower() in ("none", "null", "nil") else value.lower()
    if hasattr(builtins, option.converter):
        return getattr(builtins, option.converter)(value)
    if option.converter == "parse_size":
        import humanfriendly

        return humanfriendly.parse_size(value)
    from espnet2.utils import types  # light: imports no torch

    return getattr(types, option.converter)(value)


def _bad_argument(argument: Argument, value: Any) -> str | None:
    """Why ``value`` is obviously not one for an argument, else None."""
    if argument.type is not None:
        from typeguard import TypeCheckError, check_type

        try:
            check_type(value, _type(argument.type))
        except TypeCheckError:
            return _number_hint(value) or f"expected {argument.text}, not {value!r}"
        return None
    if argument.default == "bool" and not isinstance(value, bool):
        return f"expected true or false, not {value!r}"
    if argument.default == "number" and isinstance(value, str):
        return _number_hint(value) or f"expected a number, not {value!r}"
    return None


def _type(description: Any) -> Any:
    """The Python type that ``Argument.type`` describes."""
    if isinstance(description, str):
        return None if description == "None" else getattr(builtins, description)
    kind, *parts = description
    if kind == "list":
        return list[_type(parts[0])] if parts else list  # type: ignore[misc]
    if kind == "sequence":
        return Sequence[_type(parts[0])] if parts else Sequence  # type: ignore[misc]
    return functools.reduce(operator.or_, map(_type, parts))


def _number_hint(value: Any) -> str | None:
    """The advice for a number in quotes; None for any other value."""
    if not isinstance(value, str):
        return None
    try:
        float(value)
    except ValueError:
        return None
    return f"expected a number, not the text {value!r}: remove the quotes"
