"""Training configs: ESPnet's YAML keys, shared fragments by ``include:``, one section of ours.

``recipe:`` is the only key that ESPnet does not know; it holds what the other stages need.
Reading a config imports neither torch nor ESPnet.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.errors import UserError, nearest

# Frontends whose features stage 2 can write into arks.
ARK_FRONTENDS = ("kaldi_fbank", "ssl")
# Keys of ``recipe:`` that only stages 5 to 8 read: they may change after a training.
READ_LATER = ("variant", "decode", "baseline", "vote")
# Keys of ``recipe:`` that records do not hold at their default.
_NEW = ("labels", "fetch", "mimic")


@dataclass(frozen=True)
class Recipe:
    """The ``recipe:`` section: what stages other than training read."""

    task: str = "asr"  # or st: speech translation, or cls: utterance classification
    target: str | None = None  # of task st: language of the translations, as in text.<target>
    train_set: str = "train"
    dev_set: str = "dev"
    features: str = "raw"  # raw: the frontend computes them; ark: written by stage 2
    vocabulary: int = 200  # SentencePiece pieces; not used with token_type char
    classes: int = 2  # of task cls
    labels: str = "label"  # of task cls: which list of classes, where a recipe has several
    sentencepiece: str = "unigram"  # or bpe; not used with token_type char
    average: int = 5  # checkpoints averaged
    average_by: str = "valid.loss"  # criterion, as ESPnet names it
    variant: str = "merged"  # form that stage 5 writes
    decode: dict = field(default_factory=lambda: {"ctc_greedy": {}})
    fetch: str | None = None  # pretrained model that stage 2 fetches into encoder_conf: path
    mimic: dict | None = None  # StepOne's settings; None: mimics start at random
    baseline: str | None = None  # tag of the run that score compares with
    vote: bool = False  # task cls: one decision a speaker, by majority over the utterances
    cpu_dtype: str = "float32"  # bfloat16: forward passes on a CPU that computes in it

    @property
    def target_file(self) -> str:
        """File of a data directory that holds what is learnt and scored."""
        if self.task == "cls":
            return "label"
        return f"text.{self.target}" if self.task == "st" else "text"


@dataclass(frozen=True)
class StepOne:
    """``recipe: mimic:``, how mimics learn their layers before they learn the task.

    Adam at ``lr``, ``batch_size`` utterances a step; the weights of the least validation error
    are kept. Activations of the teacher are kept on disk if all of them fit into ``cache_gb``.
    """

    epochs: int = 40
    lr: float = 1e-3
    batch_size: int = 16
    cache_gb: float = 4.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        if type(self.lr) not in (int, float) or not 0 < self.lr < math.inf:
            raise UserError(f"lr must be a number above 0, not {self.lr!r}")
        if type(self.cache_gb) not in (int, float) or not self.cache_gb >= 0:
            raise UserError(f"cache_gb must be a number of at least 0, not {self.cache_gb!r}")

    @classmethod
    def parse(cls, section: Any) -> "StepOne":
        """Build it from what stands in the config; ``{}`` are the defaults.

        Raises:
            UserError: unknown key or wrong value.
        """
        if not isinstance(section, dict):
            raise UserError(f"expected keys and values, not {section!r}")
        known = [f.name for f in fields(cls)]
        for key in section:
            if key not in known:
                raise UserError(f"unknown key {nearest(str(key), known)}")
        return cls(**section)


@dataclass(frozen=True)
class Config:
    """A resolved training config."""

    path: Path
    tag: str
    recipe: Recipe
    espnet: dict[str, Any]  # what ESPnet's trainer gets

    @property
    def exp(self) -> Path:
        """Folder of the experiment, relative to the recipe folder."""
        return Path("exp") / self.tag

    def pretrained(self) -> list[Path]:
        """Files of the pretrained model that the encoder is, if it is one.

        Raises:
            UserError: it has not been fetched.
        """
        path = (self.espnet.get("encoder_conf") or {}).get("path")
        if self.espnet.get("encoder") != "stack" or path is None or str(path).startswith("hub:"):
            return []
        folder = Path(str(path))
        if not folder.is_dir():
            stage = "run stage 2" if self.recipe.fetch else "give the path of one in encoder_conf"
            raise UserError(f"no pretrained model {path}; {stage}")
        names = (
            "config.json",
            "model.safetensors",
            "config.yaml",
            "model.pth",
            "deploy/*/model.pth",
        )
        return [path for name in names for path in sorted(folder.glob(name))]

    def as_dict(self) -> dict[str, Any]:
        """The whole config as plain containers, for records."""
        section = {f.name: getattr(self.recipe, f.name) for f in fields(Recipe)}
        for key in _NEW:  # what was trained before there were these keys stays current
            if section[key] == getattr(Recipe, key):
                del section[key]
        return {"recipe": copy.deepcopy(section), **copy.deepcopy(self.espnet)}


def load_config(path: str | Path, tag: str | None = None) -> Config:
    """Read a training config, its includes resolved.

    Raises:
        UserError: a file is missing, is not UTF-8 or YAML, is not a mapping, includes itself,
            has an unknown key in ``recipe:``, or a single value where a section belongs.
    """
    path = Path(path)
    merged = resolve_includes(path)
    _refuse_single_values(path, merged)
    section = merged.pop("recipe", None) or {}
    known = {f.name for f in fields(Recipe)}
    for key in section:
        if key not in known:
            raise UserError(f"{path}: unknown key in recipe: {nearest(str(key), known)}")
    if tag is None:
        tag = path.stem.removeprefix("train_")
    return Config(path=path, tag=tag, recipe=Recipe(**section), espnet=merged)


def _refuse_single_values(path: Path, merged: dict[str, Any]) -> None:
    for key, value in merged.items():
        if (key == "recipe" or key.endswith("_conf")) and not isinstance(value, dict | None):
            raise UserError(f"{path}: {key}: expected keys and values, not {value!r}")


def changed(config: Config, settings: Sequence[str]) -> Config:
    """Return the config with ESPnet's options set anew.

    Args:
        config: any.
        settings: ``KEY=VALUE`` each, a dotted key and a value in YAML.

    Raises:
        UserError: one has no ``=``, its value is not YAML or a single one where a section belongs,
            or its key is one of ``recipe:``.
    """
    espnet = config.espnet
    for setting in settings:
        changes: dict[str, Any] = {}
        key, equals, value = setting.partition("=")
        if not equals or key.partition(".")[0] in ("", "recipe", "include"):
            raise UserError(f"'{setting}': expected KEY=VALUE, a key outside of recipe:")
        try:
            put(changes, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise UserError(f"'{setting}': the value is not valid YAML") from None
        espnet = _merge(espnet, changes)
    _refuse_single_values(config.path, espnet)
    return replace(config, espnet=espnet)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def resolve_includes(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in ``path`` merged over those that its ``include:`` names.

    Later includes win over earlier ones and the file itself wins over all; mappings merge
    key by key, anything else is replaced. Included paths are relative to the including file.
    """
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: includes itself through {seen[-1]}")
    if not path.is_file():
        by = f" (included by {seen[-1]})" if seen else ""
        raise UserError(f"no config {path}{by}; look in conf/ for train_*.yaml")
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    for key in own:
        if not isinstance(key, str):
            raise UserError(f"{path}: keys are words, not {key!r}")
    merged: dict[str, Any] = {}
    includes = own.pop("include", None)
    includes = [] if includes is None else includes
    includes = includes if isinstance(includes, list) else [includes]
    for name in includes:
        if not isinstance(name, str):
            raise UserError(f"{path}: include: expected files, not {name!r}")
        merged = _merge(merged, resolve_includes(path.parent / name, (*seen, path)))
    return _merge(merged, own)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
