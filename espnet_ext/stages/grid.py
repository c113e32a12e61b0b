"""The trainings of a grid, in parallel: each is trained, deployed, decoded and scored."""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.bridge.training.run_record import merged
from espnet_ext.config.grid import Cell, Grid
from espnet_ext.config.processes import Processes
from espnet_ext.config.training import EXPERIMENTS, given_settings
from espnet_ext.data.corpora.folds import read_folds
from espnet_ext.data.kaldi_dir import audio_inputs
from espnet_ext.data.parts import Part
from espnet_ext.data.processes import map_processes
from espnet_ext.data.text import collapse_blanks, normalise_text
from espnet_ext.errors import StoppedError, UserError
from espnet_ext.experiment import DATA, Experiment
from espnet_ext.files import DEPLOYED, Stamp, read_json, write_json, write_text
from espnet_ext.results import grids
from espnet_ext.results.plots.grids import plot_grid
from espnet_ext.results.run import recipe_names
from espnet_ext.results.schema import SCHEMA_VERSION, as_json
from espnet_ext.score.classification import metrics, read_decisions, vote
from espnet_ext.score.pairs import read_pairs
from espnet_ext.stages.decode import decode
from espnet_ext.stages.deploy import deploy
from espnet_ext.stages.train import TrainOptions, train
from espnet_ext.validation import parse

_CELL_VERSION = 2  # of what cell.json holds
MADE_BY = ("commit", "versions", "machine")  # keys of train.json that a summary merges


@dataclass(frozen=True)
class GridRun:
    """A grid with the options of a call.

    Attributes:
        grid: what is trained.
        espnet: options for ESPnet's trainer.
        keep_models: do not remove checkpoints.
        ngpu: GPUs of a training; 0: the CPU.
    """

    grid: Grid
    espnet: Sequence[str] = ()
    keep_models: bool = False
    ngpu: int = 0

    def cells(self) -> list[Cell]:
        """All trainings.

        Raises:
            UserError: stage 1 has not made the folds.
        """
        split = self.grid.split
        return self.grid.cells([""] if split is None else read_folds(DATA, split))

    def is_done(self, cell: Cell) -> bool:
        """True if a training was done and scored with the present config and data."""
        if cell.start_model is not None and not cell.start_model.is_file():
            _write_config(cell)
            return False
        return self.stamp(cell).is_current()

    def run(self, todo: Sequence[Cell], jobs: int) -> None:
        """Run trainings, ``jobs`` at once; those that start from another's model after it.

        Raises:
            UserError: some failed.
        """
        from tqdm import tqdm

        from espnet_ext.bridge.muted import muted

        with muted():  # imported once: the processes are forked from this one
            import torch

            import espnet_ext.bridge.configs.check
            import espnet_ext.bridge.decoding.inference
            import espnet_ext.bridge.deployed.folder
            import espnet_ext.bridge.training.trainer  # noqa: F401
        torch.set_num_threads(1)
        failed: set[str] = set()
        for wave in waves(todo):
            ready = [cell for cell in wave if cell.before is None or cell.before.tag not in failed]
            failed.update(cell.tag for cell in wave if cell not in ready)
            # A chunk of one; and fewer than two tasks are run here.
            results = map_processes(GridRun._run_one, ready, jobs, chunk=1, shared=self)
            bar = tqdm(results, total=len(ready), desc="grid")
            for cell, error in zip(ready, bar, strict=True):
                if error:
                    failed.add(cell.tag)
                    tqdm.write(f"grid: {cell.tag}: {error}")
        if failed:
            raise UserError(
                f"{len(failed)} of {len(todo)} trainings failed, see the lines above; when that is "
                "mended run the same command again, the others are kept"
            )

    def summary(self, cells: Sequence[Cell]) -> tuple[grids.Grid, list[Path]]:
        """Write grid.json and its plots; return the summary and the plots' paths."""
        results = [read_json(cell_config(cell).with_name("cell.json")) for cell in cells]
        experiment = Experiment.load(cell_config(cells[0]), cells[0].tag)
        dataset, task = recipe_names(Path.cwd())
        classes = experiment.classes if experiment.recipe.task == "cls" else None
        made = {
            "schema_version": SCHEMA_VERSION,
            "command": f"espnet-ext grid {self.grid.path}",
            "dataset": dataset,
            "task": task,
            **{key: merged([result[key] for result in results]) for key in MADE_BY},
            **grids.summary(self.grid, results, classes, experiment.recipe.target),
        }
        record = parse(grids.Grid, made, f"grid {self.grid.name}")
        folder = EXPERIMENTS / f"grid_{self.grid.name}"
        write_json(folder / "grid.json", as_json(record))
        return record, plot_grid(record, folder)

    def stamp(self, cell: Cell) -> Stamp:
        """The stamp of a training that was done and scored."""
        path = _write_config(cell)
        experiment, name = Experiment.load(path, cell.tag), cell.set_name(self.grid.part)
        inputs = [*experiment.training_files(), experiment.references(name)]
        inputs += [experiment.audio_list(name), *audio_inputs(experiment.set_folder(name))]
        config = given_settings(experiment.config.as_dict())
        settings = [_CELL_VERSION, config, self.grid.part, list(self.espnet)]
        return Stamp(path.parent / ".cell.done.json", settings, inputs)

    def _run_one(self, cell: Cell) -> str | None:
        """Train, deploy, decode and score one cell; return the error, if there was one."""
        handlers = logging.getLogger().handlers
        try:
            with (
                open(cell_config(cell).with_name("cell.log"), "a") as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                experiment = self._train_and_score(cell)
                if not self.keep_models:
                    starts = {c.before.tag for c in self.cells() if c.before is not None}
                    _remove_models(experiment, is_start=cell.tag in starts)
        except StoppedError:
            raise  # the signal was for the grid
        except UserError as error:
            return str(error)
        finally:
            handlers.clear()  # one of them writes into the log that is closed now
        return None

    def _train_and_score(self, cell: Cell) -> Experiment:
        experiment = Experiment.load(cell_config(cell), cell.tag)
        processes = Processes(max(1, self.ngpu))
        train(experiment, TrainOptions(self.ngpu, processes=processes, espnet=self.espnet))
        deploy(experiment)
        name = cell.set_name(self.grid.part)
        # Other trainings run at the same time: a real-time factor would measure them too.
        device = "cuda" if self.ngpu else "cpu"
        decode(experiment, [name], jobs=1, timed=False, device=device)
        made = read_json(experiment.deployed / DEPLOYED)
        trained = read_json(experiment.train_record)
        result = {
            "system": cell.system.name,
            "fold": cell.fold or "fixed",
            "seed": cell.seed,
            "parameters": made["parameters"]["total"],
            "training_parameters": made["training_parameters"]["total"],
            "macs_per_second": made["macs_per_second"],
            "max_difference": made["verified"]["max_difference"],
            "training_seconds": trained["seconds"],
            "epochs": trained["epochs"],
            **{key: trained[key] for key in MADE_BY},
            **_scored(experiment, name),
        }
        if "encoder_stack" in made["parameters"]:
            result["stack_parameters"] = made["parameters"]["encoder_stack"]
        output = experiment.folder / "cell.json"
        write_json(output, result)
        self.stamp(cell).write([output])
        return experiment


def part_of(cells: list[Cell], part: Part | None) -> list[Cell]:
    """The trainings of a part, whole chains of them; all if ``part`` is None.

    A training that starts from another's model is in the part of that one.
    """
    if part is None:
        return cells
    chains: dict[str, list[Cell]] = {}
    for cell in cells:
        first = cell
        while first.before is not None:
            first = first.before
        chains.setdefault(first.tag, []).append(cell)
    return [cell for chain in part.of(list(chains.values())) for cell in chain]


def cell_config(cell: Cell) -> Path:
    """Path of the config that a training gets."""
    return EXPERIMENTS / cell.tag / "cell.yaml"


def _write_config(cell: Cell) -> Path:
    path = cell_config(cell)
    text = cell.config_text(path.parent)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def waves(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield the trainings that start from no other, then those that start from these, ..."""

    def depth(cell: Cell) -> int:
        return 0 if cell.before is None else 1 + depth(cell.before)

    for _, wave in itertools.groupby(sorted(cells, key=depth), depth):
        yield list(wave)


def _remove_models(experiment: Experiment, is_start: bool) -> None:
    """Remove all checkpoints, but not the average from which other trainings start."""
    average = experiment.averaged_model.resolve()
    for model in experiment.folder.rglob("*.pth"):
        if not (is_start and model.resolve() == average):
            model.unlink()


def _scored(experiment: Experiment, name: str) -> dict[str, Any]:
    """References and hypotheses of a set; of classes with their scores."""
    recipe = experiment.recipe
    reference = experiment.references(name)
    hypotheses = experiment.decoded(next(iter(recipe.decode)), name) / "text"
    if recipe.task == "cls":
        utt2spk = reference.with_name("utt2spk")
        decisions = read_decisions(reference, hypotheses, utt2spk, experiment.classes)
        if recipe.vote:
            decisions = vote(decisions)
        lists = {key: getattr(decisions, key) for key in ("references", "hypotheses", "speakers")}
        return lists | metrics(decisions.references, decisions.hypotheses, decisions.classes)
    normalise = collapse_blanks if recipe.task == "st" else normalise_text
    pairs = read_pairs(reference, hypotheses, normalise=normalise)
    return {"references": pairs.references, "hypotheses": pairs.hypotheses}
