"""Config files that build on others: ``include:`` merges them, ``exclude:`` drops inherited keys.

    include: [../../../conf/base/asr.yaml, train_conformer_xs.yaml]
    exclude: [specaug, encoder_conf.interctc_layer_idx]

Later includes win over earlier ones, and the file itself wins over all. Mappings merge key by key;
any other value is replaced. Included paths are relative to the including file.
"""

import copy
import difflib
import os
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, nearest
from espnet_ext.yaml_files import read_mapping


def resolve_includes(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in ``path``, merged over the files that it includes.

    Raises:
        UserError: a file is missing, is not a mapping in YAML, or includes itself; an excluded key
            is not inherited.
    """
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: includes itself through {seen[-1]}")
    if not os.path.isfile(path):  # False too where the name is too long
        by = f" (included by {seen[-1]})" if seen else ""
        raise UserError(f"no config {path}{by}; {_hint(path)}")
    content = read_mapping(path)
    merged: dict[str, Any] = {}
    for name in _words(content.pop("include", None), f"{path}: include", "files"):
        merged = merge(merged, resolve_includes(path.parent / name, (*seen, path)))
    for key in _words(content.pop("exclude", None), f"{path}: exclude", "inherited keys"):
        _drop(merged, key, path)
    return merge(merged, content)


def _hint(path: Path) -> str:
    """Where to look for a config that is not there."""
    names = {str(found.relative_to(path.parent)) for found in path.parent.rglob("train_*.yaml")}
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "look in conf/ for train_*.yaml"


def _words(value: Any, where: str, what: str) -> list[str]:
    """One word or a list of words, as a list."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    for word in found:
        if not isinstance(word, str):
            raise UserError(f"{where}: expected {what}, not {word!r}")
    return found


def _drop(tree: dict[str, Any], key: str, path: Path) -> None:
    """Remove a dotted key from what ``path`` inherits."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.get(parent) if isinstance(tree.get(parent), dict) else {}  # type: ignore[assignment]
    if last not in tree:
        raise UserError(f"{path}: exclude: {key} is not inherited: {nearest(last, tree)}")
    del tree[last]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over`` in it; neither is changed."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings.

    Raises:
        UserError: a part of the key is a single value, as in ``null``.
    """
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {parent} is a single value, {tree!r}, and has no keys")
    tree[last] = value
