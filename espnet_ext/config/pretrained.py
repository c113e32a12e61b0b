"""The pretrained models that a training config names: their files, and whose tokens are used."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.config.training import UNTRAINED, Config
from espnet_ext.errors import UserError
from espnet_ext.run_files import deployed_holding

PRETRAINED = "hugging_face"  # token_type of a pretrained model's tokens
_PARTS = (("encoder", "stack"), ("decoder", "whisper"))  # that are read from a folder
_FILES = ("config.json", "model*.safetensors", "config.yaml", "model.pth")


def token_source(espnet: Mapping[str, Any]) -> str | None:
    """The model whose tokens ``token_type: hugging_face`` uses: a folder or ``hub:NAME``.

    None: the config names none.
    """
    paths = (_path(espnet, part) for part in ("decoder", "encoder"))
    return next((path for path in paths if path is not None), None)


def require_token_source(config: Config) -> str:
    """Return ``token_source``.

    Raises:
        UserError: the config names none.
    """
    source = token_source(config.espnet)
    if source is None:
        raise UserError(
            f"{config.path}: token_type: {PRETRAINED} needs a pretrained model: give "
            "decoder_conf: path"
        )
    return source


def fetched_folder(espnet: Mapping[str, Any]) -> str | None:
    """Where the model ``recipe: fetch`` goes: the features' or the encoder's; None: nowhere."""
    if espnet.get("frontend") == "ssl":
        conf = espnet.get("frontend_conf")
        folder = conf.get("folder") if isinstance(conf, dict) else None
        return None if folder is None else str(folder)
    return _path(espnet, "encoder")


@dataclass(frozen=True)
class Start:
    """An entry of ``init_param``, PATH:SOURCE:TARGET:EXCLUDE as ESPnet reads it.

    Attributes:
        path: of a checkpoint.
        source: the part of it that is loaded, as ``decoder``; empty: all of it.
        target: the part of the model that it goes to; empty: the model.
        exclude: beginnings of names that are left out.
    """

    path: Path
    source: str = ""
    target: str = ""
    exclude: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True of a whole model for a whole model."""
        return not (self.source or self.target or self.exclude)


def read_starts(config: Config, root: Path) -> list[Start]:
    """Models, or parts of them, that a training starts from, of ``init_param``.

    Args:
        config: of the training.
        root: the recipe's folder, where paths start.

    Raises:
        UserError: one is missing, or no list.
    """
    found = []
    listed = config.espnet.get("init_param") or []
    if isinstance(listed, str):
        raise UserError(f"init_param: give a list of files, as in [{listed}]")
    for entry in listed:
        name, *parts = str(entry).split(":")
        path = root / name
        if not path.is_file():
            raise UserError(f"init_param: no {path}; train that config first")
        source, target, exclude = [*parts, "", "", ""][:3]
        found.append(Start(path, source, target, tuple(filter(None, exclude.split(",")))))
    return found


def pretrained_files(config: Config, root: Path) -> list[Path]:
    """Files of the pretrained models that encoder, decoder and teacher are, if they are some.

    Args:
        config: of the training.
        root: the recipe's folder, where paths start.

    Raises:
        UserError: one has not been fetched.
    """
    found: dict[Path, None] = {}
    for part, name in _PARTS:
        path = _path(config.espnet, part)
        if config.espnet.get(part) != name or path is None or path.startswith("hub:"):
            continue
        folder = root / path
        if not folder.is_dir():
            hint = f"give the path of one in {part}_conf"
            raise UserError(
                f"no pretrained model {path}; {'run stage 2' if config.recipe.fetch else hint}"
            )
        found |= dict.fromkeys(_model_files(folder))
    if config.recipe.teacher is not None:
        found |= dict.fromkeys(_model_files(teacher_folder(root, config.recipe.teacher)))
    return list(found)


def teacher_folder(root: Path, name: str) -> Path:
    """The folder of a teacher: that of a model, or the stack of exp/<tag> that stage 5 wrote.

    Raises:
        UserError: there is none.
    """
    folder = root / name
    deployed = deployed_folder(folder, "stack")
    found = folder if deployed is None else deployed / "stack"
    if (found / "config.json").is_file():
        return found
    raise UserError(
        f"recipe: teacher: no model in {name}: give exp/<tag> of a pretrained stack after its "
        "stages 1 to 5, or the folder of a model"
    )


def deployed_folder(path: Path, holds: str) -> Path | None:
    """The folder of a deployed model that holds a file or folder; None if there is none.

    Args:
        path: that folder; or exp/<tag>, of which it is the variant merged, or plain, or the only
            one that was trained.
        holds: a name in it, as model.pth.

    Raises:
        UserError: several variants of exp/<tag> hold it, and none of these names.
    """
    if (path / holds).exists():
        return path
    found = deployed_holding(path, holds)
    found.pop(UNTRAINED, None)
    for name in ("merged", "plain"):
        if name in found:
            return found[name]
    if len(found) > 1:
        models = ", ".join(map(str, found.values()))
        raise UserError(f"{path} has several models; give one: {models}")
    return next(iter(found.values()), None)


def _model_files(folder: Path) -> list[Path]:
    found = [file for pattern in _FILES for file in sorted(folder.glob(pattern))]
    return found + [path / "model.pth" for path in deployed_holding(folder, "model.pth").values()]


def _path(espnet: Mapping[str, Any], part: str) -> str | None:
    conf = espnet.get(f"{part}_conf")
    path = conf.get("path") if isinstance(conf, dict) else None
    return None if path is None else str(path)
