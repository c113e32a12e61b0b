"""A grid of trainings: systems x folds x seeds, as a file of YAML states it.

    split: voice                  # a list in data/folds; left out: the fixed sets train, dev, test
    sets: keyword_                # instead: fixed sets whose names begin so, keyword_train, ...
    seeds: [1, 2, 3, 4, 5]
    part: test                    # scored part of a fold; dev where something is tuned; without a
                                  # split any set
    unit: fold                    # what is scored and compared in pairs; speaker: the decisions
                                  # about each speaker, where folds are too few for a test
    baseline: light               # the system that the others are compared with
    known: {commonest class: 0.067}   # known scores, to stand beside ours
    systems:
      light: {config: train_conformer_s.yaml}
      hrf:
        config: train_hrf_conformer_s.yaml
        vary: {encoder_conf.hrf.ratio: [2, 4, 8], encoder_conf.hrf.sites: [[ffn], [qkv]]}

A recogniser's grid is of fixed sets; there a system may say more:

      again:
        config: train_share_again.yaml
        after: share                 # starts from that system's model of the same seed
        than: [share, small]         # what it is compared with, besides the baseline
        seeds: [1]                   # of the grid's, if it is not trained with all

A system with ``vary`` stands for one system for every combination of the values, each named by
what differs: hrf_ratio-2_sites-ffn. Reading a grid imports neither torch nor ESPnet.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.config.training import load_config, put
from espnet_ext.errors import UserError, nearest

_KEYS = ("split", "sets", "seeds", "part", "unit", "baseline", "known", "systems")
UNITS = ("fold", "speaker")
_SYSTEM_KEYS = ("config", "vary", "set", "after", "than", "seeds")


@dataclass(frozen=True)
class System:
    """A config and what differs from it."""

    name: str
    config: Path
    changes: Mapping[str, Any] = field(default_factory=dict)  # dotted key: value
    after: "System | None" = None  # its averaged model is what the training starts from
    than: tuple[str, ...] = ()  # systems that it is compared with
    seeds: tuple[int, ...] | None = None  # None: all of the grid


@dataclass(frozen=True)
class Cell:
    """One training: a system on a fold with a seed."""

    grid: str
    system: System
    fold: str  # "" is the fixed split
    seed: int
    sets: str = ""  # what the names of the fixed sets begin with

    @property
    def tag(self) -> str:
        """Name of the experiment below exp/."""
        return f"grid_{self.grid}/{self.system.name}/{self.fold or 'fixed'}_s{self.seed}"

    @property
    def before(self) -> "Cell | None":
        """The training whose model this one starts from."""
        return None if self.system.after is None else replace(self, system=self.system.after)

    @property
    def start_model(self) -> Path | None:
        """That model."""
        if self.before is None:
            return None
        average = load_config(self.before.system.config).recipe.average_by
        return Path("exp") / self.before.tag / f"{average}.ave.pth"

    def set_name(self, part: str) -> str:
        """The data set that is a part of the fold."""
        return f"{self.fold}/{part}" if self.fold else f"{self.sets}{part}"

    def config_text(self, folder: Path) -> str:
        """The config of this training, to be written into ``folder``."""
        changes: dict[str, Any] = {"include": os.path.relpath(self.system.config, folder)}
        for key, value in self.system.changes.items():
            put(changes, key, value)
        put(changes, "seed", self.seed)
        if self.start_model is not None:
            put(changes, "init_param", [self.start_model.as_posix()])
        put(changes, "recipe.train_set", self.set_name("train"))
        put(changes, "recipe.dev_set", self.set_name("dev"))
        put(changes, "recipe.baseline", None)
        return yaml.safe_dump(changes, sort_keys=False)


@dataclass(frozen=True)
class Grid:
    """What a grid file says."""

    name: str
    split: str | None
    seeds: tuple[int, ...]
    part: str
    baseline: str | None
    systems: tuple[System, ...]
    sets: str = ""  # what the names of the fixed sets begin with
    known: Mapping[str, float] = field(default_factory=dict)  # what others scored on this split
    unit: str = "fold"

    def cells(self, folds: list[str]) -> list[Cell]:
        """All trainings; those of one fold stand together, for they share its statistics."""
        return [
            Cell(self.name, system, fold, seed, self.sets)
            for fold in folds
            for seed in self.seeds
            for system in self.systems
            if system.seeds is None or seed in system.seeds
        ]


def read_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        UserError: it is missing, is no grid, or names a config that is not there.
    """
    if not path.is_file():
        raise UserError(f"no grid {path}; look in conf/ for grid_*.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values ({', '.join(_KEYS)})")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key {nearest(str(key), _KEYS)}")
    seeds = content.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise UserError(f"{path}: seeds must be a list of whole numbers, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: a seed stands twice in {seeds}")
    part = content.get("part", "test")
    fixed = content.get("split") is None
    if not isinstance(part, str) or not (part in ("test", "dev") or (part and fixed)):
        raise UserError(f"{path}: part must be test or dev, not {part!r}")
    sets = content.get("sets", "")
    if not isinstance(sets, str) or (sets and content.get("split") is not None):
        raise UserError(f"{path}: sets is what names of fixed sets begin with, without a split")
    unit = content.get("unit", "fold")
    if unit not in UNITS:
        raise UserError(f"{path}: unit must be fold or speaker, not {unit!r}")
    known = content.get("known") or {}
    if not isinstance(known, dict) or not all(is_share(value) for value in known.values()):
        raise UserError(f"{path}: known must be names, each with a score from 0 to 1")
    given = content.get("systems")
    if not isinstance(given, dict) or not given:
        raise UserError(f"{path}: systems must be names, each with a config")
    systems: list[System] = []
    for name, entry in given.items():
        systems += _expand(path, str(name), entry, systems, seeds)
    names = [system.name for system in systems]
    baseline = content.get("baseline")
    if baseline is not None and baseline not in names:
        raise UserError(f"{path}: baseline is no system: {nearest(str(baseline), names)}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two systems have one name among {', '.join(names)}")
    by_name = {system.name: system for system in systems}
    for system in systems:
        for other in system.than:
            where = f"{path}: system {system.name}: than"
            if other not in names or other == system.name:
                known = [name for name in names if name != system.name]
                raise UserError(f"{where}: {nearest(other, known)}")
            if not set(system.seeds or seeds) & set(by_name[other].seeds or seeds):
                raise UserError(f"{where}: {other} has no seed in common with it")
    return Grid(
        name=path.stem.removeprefix("grid_"),
        split=content.get("split"),
        seeds=tuple(seeds),
        part=part,
        unit=unit,
        baseline=baseline,
        systems=tuple(systems),
        sets=sets,
        known={str(name): float(value) for name, value in known.items()},
    )


def is_share(value: Any) -> bool:
    """True for a number from 0 to 1; YAML's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _expand(
    path: Path, name: str, entry: Any, before: Sequence[System], seeds: Sequence[int]
) -> list[System]:
    if not isinstance(entry, dict) or "config" not in entry:
        raise UserError(f"{path}: system {name} names no config")
    where = f"{path}: system {name}"
    for key in entry:
        if key not in _SYSTEM_KEYS:
            raise UserError(f"{where}: unknown key {nearest(key, _SYSTEM_KEYS)}")
    config = path.parent / entry["config"]
    if not config.is_file():
        raise UserError(f"{where}: no config {config}")
    fixed, vary = (entry.get(key) or {} for key in ("set", "vary"))
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: vary: {key} must be a list of values")
    after, than, own = _chain(where, entry, before, seeds)
    systems = []
    for chosen in itertools.product(*vary.values()):
        changes = dict(zip(vary, chosen, strict=True))
        words = [name, *(f"{key.rpartition('.')[2]}-{_word(v)}" for key, v in changes.items())]
        systems.append(System("_".join(words), config, {**fixed, **changes}, after, than, own))
    return systems


def _chain(
    where: str, entry: Mapping[str, Any], before: Sequence[System], seeds: Sequence[int]
) -> tuple[System | None, tuple[str, ...], tuple[int, ...] | None]:
    """What a system starts from, is compared with, and the seeds it is trained with."""
    own, than, name = entry.get("seeds"), entry.get("than") or [], entry.get("after")
    if own is not None and (not isinstance(own, list) or not own or set(own) - set(seeds)):
        raise UserError(f"{where}: seeds must be some of {seeds}, not {own!r}")
    if not isinstance(than, list):
        raise UserError(f"{where}: than must be a list of systems, not {than!r}")
    known = {system.name: system for system in before}
    if name is not None and name not in known:
        raise UserError(f"{where}: after must name a system above it: {nearest(str(name), known)}")
    after = None if name is None else known[name]
    if after is not None and after.seeds is not None and set(own or seeds) - set(after.seeds):
        raise UserError(f"{where}: {after.name} is not trained with all of its seeds")
    return after, tuple(map(str, than)), None if own is None else tuple(own)


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
