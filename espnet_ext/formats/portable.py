"""The config of a folder that can be moved: the files that it names lie in the folder.

Their paths start from the folder, so stock ESPnet opens it with the folder as its working folder,
and ESPnet's archives (``espnet2.main_funcs.pack_funcs``) hold it as it is.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STATISTICS = "feats_stats.npz"
TOKENS = "tokens.txt"
# Where a config names a file or folder that decoding needs, and its name in the folder.
_NAMED = (
    (("token_list",), TOKENS),
    (("bpemodel",), "tokenizer"),
    (("normalize_conf", "stats_file"), STATISTICS),
)
# Of the training alone; their paths are those of the recipe.
_TRAINING = (
    *("config", "output_dir", "init_param", "required"),
    *("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type"),
    *("train_shape_file", "valid_shape_file"),
)


def gather(arguments: Mapping[str, Any], folder: Path, list_tokens: bool = False) -> dict[str, Any]:
    """Copy the files that a config names into ``folder``; return the config that names those.

    ``list_tokens``: keep the token list in the config, for a file that has all.

    Raises:
        OSError: a file is missing.
    """
    found = {key: value for key, value in arguments.items() if key not in _TRAINING}
    listed = found.get("token_list")
    if isinstance(listed, list | tuple) and not list_tokens:
        text = "".join(f"{token}\n" for token in listed)
        (folder / TOKENS).write_text(text, encoding="utf-8")
        found["token_list"] = TOKENS
    for keys, name in _NAMED:
        section = _section(found, keys)
        value = section.get(keys[-1])
        if not isinstance(value, str) or value == TOKENS:
            continue
        if Path(value).is_dir():
            shutil.copytree(value, folder / name, ignore=shutil.ignore_patterns(".*", TOKENS))
        else:
            name = name if Path(name).suffix else Path(value).name
            shutil.copyfile(value, folder / name)
        section[keys[-1]] = name
    return found


def located(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config with the whole paths of the files that it names in its folder."""
    found = dict(arguments)
    for keys, _ in _NAMED:
        section = _section(found, keys)
        value = section.get(keys[-1])
        if isinstance(value, str) and (folder / value).exists():
            section[keys[-1]] = str((folder / value).absolute())
    return found


def named_files(arguments: Mapping[str, Any]) -> Iterator[Path]:
    """The existing files that a config names, or that are in a folder that it names."""
    for keys, _ in _NAMED:
        value = _section(dict(arguments), keys).get(keys[-1])
        if isinstance(value, str):
            path = Path(value)
            yield from (f for f in (path, *path.glob("*")) if f.is_file())


def with_tokens(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the token list itself in place of the file's path."""
    listed = arguments.get("token_list")
    if not isinstance(listed, str):
        return dict(arguments)
    tokens = Path(listed).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {**arguments, "token_list": tokens}


def _section(arguments: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The section of a config that has the last of ``keys``, replaced by a copy."""
    section = arguments
    for key in keys[:-1]:
        section[key] = dict(section.get(key) or {})
        section = section[key]
    return section
