"""A grid of trainings: systems x folds x seeds, as a file of YAML states it.

    split: voice                  # a list in data/folds; left out: the fixed sets train, dev, test
    sets: keyword_                # instead: fixed sets whose names begin so, keyword_train, ...
    seeds: [1, 2, 3, 4, 5]
    part: test                    # scored part of a fold; dev where something is tuned; without a
                                  # split any set
    unit: fold                    # what is scored and compared in pairs; speaker: the decisions
                                  # about each speaker, where folds are too few for a test
    baseline: light               # the system that the others are compared with
    systems:
      light: {config: train_conformer_s.yaml}
      hrf:
        config: train_hrf_conformer_s.yaml
        vary: {encoder_conf.hrf.ratio: [2, 4, 8], encoder_conf.hrf.sites: [[ffn], [qkv]]}

A recogniser's grid is of fixed sets; there a system may say more:

      again:
        config: train_share.yaml
        after: share                 # starts from that system's model of the same seed
        than: [share, small]         # what else it is compared with, after the baseline
        seeds: [1]                   # of the grid's, if it is not trained with all

A system with ``vary`` is expanded to one system for each combination of the values, named by its
values: hrf_ratio-2_sites-ffn. Reading a grid imports neither torch nor ESPnet.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from espnet_ext.config.includes import put
from espnet_ext.config.training import EXPERIMENTS, load_config
from espnet_ext.errors import UserError, check_name, nearest
from espnet_ext.validation import Strict, parse
from espnet_ext.yaml_files import read_mapping

Seeds = Annotated[list[int], Field(min_length=1, description="a list of whole numbers, not empty")]
_NAME = "the name of a system; quote one that is a number"
Values = Annotated[list[Any], Field(min_length=1)]


class _SystemEntry(Strict):
    """A system as a grid file states it."""

    config: str
    vary: Annotated[
        dict[str, Values] | None, Field(description="keys, each with a list of values")
    ] = None
    set: dict[str, Any] | None = None
    after: Annotated[str | None, Field(description=_NAME)] = None
    than: Annotated[list[str] | None, Field(description="a list of systems")] = None
    seeds: Annotated[list[int] | None, Field(min_length=1)] = None


class _GridFile(Strict):
    """A grid file."""

    split: str | None = None
    sets: Annotated[str, Field(description="the beginning of names of fixed sets")] = ""
    seeds: Seeds
    part: str = "test"
    unit: Literal["fold", "speaker"] = "fold"
    baseline: Annotated[str | None, Field(description=_NAME)] = None
    systems: Annotated[
        dict[str, _SystemEntry], Field(min_length=1, description="names, each with a config")
    ]


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
        recipe = load_config(self.before.system.config).recipe
        return EXPERIMENTS / self.before.tag / recipe.averaged_file

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
    """A grid file, its systems expanded."""

    path: Path
    name: str
    split: str | None
    seeds: tuple[int, ...]
    part: str
    baseline: str | None
    systems: tuple[System, ...]
    sets: str = ""  # what the names of the fixed sets begin with
    unit: str = "fold"

    def cells(self, folds: list[str]) -> list[Cell]:
        """All trainings, fold by fold: those of one fold share its statistics."""
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
        UserError: it is missing, is no grid, or names a config or a system that is not there.
    """
    if not path.is_file():
        raise UserError(f"no grid {path}; look in conf/grids/")
    found = parse(_GridFile, read_mapping(path), path)
    if any(count > 1 for count in Counter(found.seeds).values()):
        raise UserError(f"{path}: a seed occurs twice in {found.seeds}")
    if found.part not in ("test", "dev") and (found.split is not None or not found.part):
        raise UserError(f"{path}: part must be test or dev, not {found.part!r}")
    if found.sets and found.split is not None:
        raise UserError(f"{path}: sets is for fixed sets; leave it out, or split")
    systems: list[System] = []
    for name in (path.stem, found.part, *filter(None, (found.split, found.sets))):
        check_name(name, f"{path}:")
    for name, entry in found.systems.items():
        systems += _expand(path, name, entry, systems, found.seeds)
    for name in (*found.systems, *(system.name for system in systems)):
        check_name(name, f"{path}: system")
        if "/" in name:
            raise UserError(f"{path}: system {name!r}: a name without '/'")
    _refuse_unknown_systems(path, found, systems)
    return Grid(
        path=path,
        name=path.stem.removeprefix("grid_"),
        split=found.split,
        seeds=tuple(found.seeds),
        part=found.part,
        unit=found.unit,
        baseline=found.baseline,
        systems=tuple(systems),
        sets=found.sets,
    )


def _refuse_unknown_systems(path: Path, found: _GridFile, systems: Sequence[System]) -> None:
    """Raise UserError if a name of a system is used twice, or names none."""
    by_name = {system.name: system for system in systems}
    if len(by_name) < len(systems):
        names = ", ".join(system.name for system in systems)
        raise UserError(f"{path}: two systems have one name among {names}")
    if found.baseline is not None and found.baseline not in by_name:
        raise UserError(f"{path}: baseline is no system: {nearest(found.baseline, by_name)}")
    for system in systems:
        for other in system.than:
            where = f"{path}: system {system.name}: than"
            if other not in by_name or other == system.name:
                known = [name for name in by_name if name != system.name]
                raise UserError(f"{where}: {nearest(other, known)}")
            if not set(system.seeds or found.seeds) & set(by_name[other].seeds or found.seeds):
                raise UserError(f"{where}: {other} has no seed in common with it")


def _expand(
    path: Path, name: str, entry: _SystemEntry, before: Sequence[System], seeds: Sequence[int]
) -> Iterator[System]:
    """Yield a system for each combination of the values to vary."""
    where = f"{path}: system {name}"
    config = path.parent / entry.config
    if not os.path.isfile(config):  # False too where the name is too long
        raise UserError(f"{where}: no config {config}")
    after = _start(where, entry, before, seeds)
    vary, than = entry.vary or {}, tuple(entry.than or ())
    only = None if entry.seeds is None else tuple(entry.seeds)
    for chosen in itertools.product(*vary.values()):
        changes = dict(zip(vary, chosen, strict=True))
        words = [name, *(f"{key.rpartition('.')[2]}-{_word(v)}" for key, v in changes.items())]
        yield System("_".join(words), config, {**(entry.set or {}), **changes}, after, than, only)


def _start(
    where: str, entry: _SystemEntry, before: Sequence[System], seeds: Sequence[int]
) -> System | None:
    """The system whose model a system starts from."""
    if set(entry.seeds or ()) - set(seeds):
        raise UserError(f"{where}: seeds must be some of {seeds}, not {entry.seeds!r}")
    if entry.after is None:
        return None
    known = {system.name: system for system in before}
    if entry.after not in known:
        raise UserError(
            f"{where}: after must name a system above it: {nearest(entry.after, known)}"
        )
    after = known[entry.after]
    if after.seeds is not None and set(entry.seeds or seeds) - set(after.seeds):
        raise UserError(f"{where}: {after.name} is not trained with all of its seeds")
    return after


def _word(value: Any) -> str:
    """A value as part of a system's name, which becomes a folder's."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() and c not in "/\\ " else "_" for c in text)
