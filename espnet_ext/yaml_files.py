"""Reading YAML as data: a mistake is one line that names the file.

As in YAML 1.2, only ``true`` and ``false`` are booleans, ``1e-3`` is a number, and there are no
dates: ``no`` is a language. ``010`` is a word. Keys are words as they are written, so ``1.10`` is a
name. ESPnet's files are YAML 1.1, where the words ``08`` and ``1e3`` need no quotes: they are read
as ``dumped``.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8

_MOST_NODES = 1_000_000  # of a file once its aliases are expanded
_MOST_BYTES = 64 << 20
_MOST_DIGITS = 100
_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_TAGS = {f"{_PREFIX}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules of YAML 1.2 for plain words; its errors name lines."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
        except (ValueError, LookupError, OverflowError):
            raise _error(node, f"{node.value[:_MOST_DIGITS]!r} is no {_kind(node)}") from None
        if isinstance(found, int) and abs(found) >= 1 << 63:
            raise _error(node, "a whole number of over 64 bits")
        return found


# Only true and false are booleans; there are no dates and no numbers in base 60.
_NOT_PLAIN = ("bool", "timestamp", "int", "float", "value")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_PREFIX) not in _NOT_PLAIN]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(
        f"{_PREFIX}{_name}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


class _DumpedLoader(_Loader):
    """_Loader with PyYAML's rules for plain words."""

    yaml_implicit_resolvers = yaml.SafeLoader.yaml_implicit_resolvers


def parse_yaml(text: str, where: str, dumped: bool = False) -> Any:
    """Return the value of a text in YAML; ``dumped``: that PyYAML wrote.

    Raises:
        UserError: not YAML, a key twice, a tag, a value that Python has not, or too large a text,
            also by its aliases.
    """
    if len(text) > _MOST_BYTES:
        raise UserError(f"{where}: {len(text):,} characters, at most {_MOST_BYTES:,}")
    try:
        loader = (_DumpedLoader if dumped else _Loader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}, set()) > _MOST_NODES:
            raise UserError(f"{where}: its aliases expand to over {_MOST_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise UserError(f"{where}: not valid YAML: {reason}") from None


def _expanded(node: Any, known: dict[int, int], above: set[int]) -> int:
    """Check a node as it is written; return its number of values, with its aliases written out."""
    if id(node) in above:
        raise _error(node, "an alias of what holds it")
    if id(node) not in known:
        above.add(id(node))
        _check(node)
        inner = node.value if not isinstance(node, yaml.ScalarNode) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_expanded(part, known, above) for part in parts)
        above.discard(id(node))
    return known[id(node)]


def _check(node: Any) -> None:
    """Refuse tags, numbers of very many digits and keys given twice; keys become texts."""
    if node.tag not in _TAGS and node.tag != _MERGE:
        raise _error(node, f"the tag {_kind(node)}; values are plain data")
    if _kind(node) in ("int", "float") and len(node.value) > _MOST_DIGITS:
        raise _error(node, f"a number of {len(node.value):,} characters")
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise _error(key, "keys are words")
        if key.tag in _TAGS:
            key.tag = f"{_PREFIX}str"
        if key.value in seen:
            raise _error(key, f"the key {key.value} occurs twice")
        seen.add(key.value)


def _kind(node: Any) -> str:
    return str(node.tag).removeprefix(_PREFIX)


def _error(node: Any, reason: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{reason} (line {node.start_mark.line + 1})")


def read_yaml(path: Path, dumped: bool = False) -> Any:
    """Read a file of YAML; ``dumped``: that PyYAML wrote.

    Raises:
        UserError: what ``read_utf8`` and ``parse_yaml`` raise.
    """
    return parse_yaml(read_utf8(path), str(path), dumped)


def read_mapping(path: Path, dumped: bool = False) -> dict[str, Any]:
    """Read a file of keys and values, maybe written by PyYAML; an empty file is an empty mapping.

    Raises:
        UserError: what ``read_yaml`` raises, not a mapping, or a key that is not a word.
    """
    content = read_yaml(path, dumped)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    for key in content:
        if not (isinstance(key, str) and key.isidentifier()):
            raise UserError(f"{path}: keys are words, not {key}")
    return content
