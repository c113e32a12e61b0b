"""Reading YAML as data: a mistake is one line that names the file.

As in YAML 1.2, only ``true`` and ``false`` are booleans and there are no dates: ``no`` is a
language. Keys are words as they are written, so ``1.10`` is a name.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8

_MOST_NODES = 1_000_000  # of a file once its aliases are expanded
_MOST_BYTES = 64 << 20


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and aliases that expand without bound."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value} occurs twice (line {line})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_DROPPED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _DROPPED]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _DROPPED[0], re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a text in YAML.

    Raises:
        UserError: not YAML, a key twice, a tag, a value that Python has not, or too large a text,
            also by its aliases.
    """
    if len(text) > _MOST_BYTES:
        raise UserError(f"{where}: {len(text):,} characters, at most {_MOST_BYTES:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}, set()) > _MOST_NODES:
            raise UserError(f"{where}: its aliases expand to over {_MOST_NODES:,} values")
        return loader.construct_document(node)
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise UserError(f"{where}: not valid YAML: {reason}") from None


def _expanded(node: Any, known: dict[int, int], above: set[int]) -> int:
    """Number of values of a node, with its aliases written out."""
    if id(node) in above:
        raise yaml.YAMLError("an alias of what holds it")
    if id(node) not in known:
        above.add(id(node))
        inner = node.value if not isinstance(node, yaml.ScalarNode) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_expanded(part, known, above) for part in parts)
        above.discard(id(node))
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """Read a file of YAML.

    Raises:
        UserError: what ``read_utf8`` and ``parse_yaml`` raise.
    """
    return parse_yaml(read_utf8(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file of keys and values; an empty file is an empty mapping.

    Raises:
        UserError: what ``read_yaml`` raises, not a mapping, or a key that is not a word.
    """
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    for key in content:
        if not (isinstance(key, str) and key.isidentifier()):
            raise UserError(f"{path}: keys are words, not {key}")
    return content
