"""Train and score a whole grid: systems x folds x seeds, in parallel, resumable.

Reads conf/grid_<name>.yaml (``config/grid.py`` has the format). Stages 1 to 3 must have run.
Of a recogniser or a translator the words are scored instead of classes; a training that starts
from another's model (after, in the grid's file) comes after it.
Each training lies in exp/grid_<name>/<system>/<fold>_s<seed>/ and leaves there what was decided
(decode/), cell.json with its scores, and its logs; its checkpoints are removed unless
--keep_models is given. One that is done is skipped. The end is exp/grid_<name>/grid.json, a table
and plots. On a cluster let job K of N run --part K/N on a shared disk, then call it once more.

Example:
  espnet-ext grid conf/grid_voice.yaml --nj 4
  espnet-ext grid conf/grid_voice.yaml --part 3/20
  espnet-ext grid conf/grid_voice.yaml --publish
"""

import argparse
import contextlib
import functools
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet_ext.cli import decode, deploy, train
from espnet_ext.cli.checked import checked_config
from espnet_ext.cli.report import refuse_uncommitted, regenerate
from espnet_ext.cli.tokens import classes_of
from espnet_ext.config.grid import Cell, Grid, read_grid
from espnet_ext.config.training import Config, load_config
from espnet_ext.data.corpora.corpus import read_folds
from espnet_ext.data.kaldi_dir import audio_inputs
from espnet_ext.data.processes import map_processes
from espnet_ext.data.text import collapse_blanks, normalise_text
from espnet_ext.errors import UserError, at_least
from espnet_ext.files import Stamp, read_json, write_json, write_text
from espnet_ext.results import grids, text_grids
from espnet_ext.results.schema import SCHEMA_VERSION
from espnet_ext.score.classification import metrics, read_decisions, vote
from espnet_ext.score.pairs import read_pairs

MADE_BY = ("commit", "versions", "machine")  # what train.json tells of its calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("grid", help="grid file")
    parser.add_argument(
        "--nj", type=at_least(1), default=2, help="trainings at once, one thread each"
    )
    parser.add_argument("--part", help="K/N: only every Nth training from the Kth on")
    parser.add_argument("--keep_models", action="store_true", help="do not remove checkpoints")
    parser.add_argument("--dry_run", action="store_true", help="only count what would run")
    parser.add_argument("--publish", action="store_true", help="copy into results/, RESULTS.md")
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="publish a grid whose trainings no commit describes",
    )
    parser.set_defaults(espnet=[])  # what stands after --


def run(args: argparse.Namespace) -> None:
    """Run what is not done, then summarise if nothing is left.

    Raises:
        UserError: a wrong grid, an earlier stage that has not run, or trainings that failed.
    """
    grid = read_grid(Path(args.grid))
    _refuse_other_task(grid, args.grid)
    folds = [""] if grid.split is None else read_folds(Path("data"), grid.split)
    cells = grid.cells(folds)
    chosen = cells[_slice(args.part)]
    todo = [cell for cell in chosen if not is_done(cell, grid.part, args.espnet)]
    print(f"grid: {len(cells)} trainings, {len(chosen) - len(todo)} of {len(chosen)} done")
    if args.dry_run:
        return
    if todo:
        starts = {cell.before.tag for cell in cells if cell.before is not None}
        _run_all(todo, grid.part, starts, args)
    missing = [cell for cell in cells if not is_done(cell, grid.part, args.espnet)]
    if missing:
        print(f"grid: {len(missing)} trainings of other parts are left; no summary yet")
        return
    record = summarise(grid, cells)
    if args.publish:
        if not args.allow_dirty:
            refuse_uncommitted(f"grid {grid.name}", record["commit"])
        _publish(record)


def _refuse_other_task(grid: Grid, path: str) -> None:
    """Raise UserError if a key of the grid's file has no meaning for what is trained."""
    is_cls = load_config(grid.systems[0].config).recipe.task == "cls"
    if is_cls and any(system.than or system.seeds for system in grid.systems):
        raise UserError(f"{path}: than and seeds of a system are for recognisers and translators")
    if not is_cls and (grid.split or grid.known or grid.unit != "fold"):
        raise UserError(f"{path}: split, unit and known are for classifiers; leave them out")


def _slice(part: str | None) -> slice:
    if part is None:
        return slice(None)
    k, _, n = part.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UserError(f"--part must be K/N with K from 1 to N, not {part!r}")
    return slice(int(k) - 1, None, int(n))


def config_path(cell: Cell) -> Path:
    """Where the config of a training is written."""
    return Path("exp") / cell.tag / "cell.yaml"


def _write_config(cell: Cell) -> Path:
    path = config_path(cell)
    text = cell.config_text(path.parent)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _stamp(cell: Cell, part: str, espnet: list[str]) -> Stamp:
    path = _write_config(cell)
    config = checked_config(path, cell.tag)
    name = cell.set_name(part)
    scored = Path("data") / name
    inputs = [*train.data_files(config), scored / config.recipe.target_file]
    inputs += [train.audio_scp(config, name)]
    settings = [SCHEMA_VERSION, config.as_dict(), part, espnet]
    return Stamp(path.parent / ".cell.done.json", settings, [*inputs, *audio_inputs(scored)])


def is_done(cell: Cell, part: str, espnet: list[str]) -> bool:
    """True if a training was done and scored with the config and data of now."""
    if cell.start_model is not None and not cell.start_model.is_file():
        _write_config(cell)
        return False
    return _stamp(cell, part, espnet).is_current()


def _run_all(todo: list[Cell], part: str, starts: set[str], args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from espnet_ext.bridge.muted import quiet

    with quiet():  # imported once: the processes are forked from this one
        import torch

        from espnet_ext.bridge import config_keys, deployed_folder, inference, trainer  # noqa: F401
    torch.set_num_threads(1)
    work = functools.partial(
        _run_one, part=part, starts=starts, espnet=args.espnet, keep=args.keep_models
    )
    failed: set[str] = set()
    for wave in _waves(todo):
        ready = [cell for cell in wave if cell.before is None or cell.before.tag not in failed]
        failed.update(cell.tag for cell in wave if cell not in ready)
        # A chunk of one; and tasks that are fewer than two are run here.
        bar = tqdm(map_processes(work, ready, args.nj, chunk=1), total=len(ready), desc="grid")
        for cell, error in zip(ready, bar, strict=True):
            if error:
                failed.add(cell.tag)
                tqdm.write(f"grid: {cell.tag}: {error}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} trainings failed, told above; "
            "run the same command again when that is mended, the others are kept"
        )


def _waves(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Yield the trainings that start from no other, then those that start from these, ..."""

    def depth(cell: Cell) -> int:
        return 0 if cell.before is None else 1 + depth(cell.before)

    for _, wave in itertools.groupby(sorted(cells, key=depth), depth):
        yield list(wave)


def _run_one(cell: Cell, part: str, starts: set[str], espnet: list[str], keep: bool) -> str | None:
    """Train, deploy, decode and score one cell; return what went wrong, if anything did."""
    folder = config_path(cell).parent
    handlers = logging.getLogger().handlers
    try:
        with (
            open(folder / "cell.log", "a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            config = _train_and_score(cell, part, espnet)
            if not keep:
                _remove_models(config, is_start=cell.tag in starts)
    except UserError as error:
        return str(error)
    finally:
        handlers.clear()  # one of them writes into the log that is closed now
    return None


def _arguments(verb: Any, cell: Cell, *words: str) -> argparse.Namespace:
    """What a verb gets for a cell; what is not among ``words`` is as its parser has it."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args([str(config_path(cell)), "--tag", cell.tag, *words])


def _train_and_score(cell: Cell, part: str, espnet: list[str]) -> Config:
    training = _arguments(train, cell, "--ngpu", "0", "--threads", "1")
    training.espnet = espnet
    train.run(training)
    deploy.run(_arguments(deploy, cell))
    name = cell.set_name(part)
    # Other trainings run beside this one: a real-time factor would be theirs too.
    decode.run(_arguments(decode, cell, "--sets", name, "--nj", "1"), timed=False)
    config = load_config(config_path(cell), cell.tag)
    method, variant = next(iter(config.recipe.decode)), config.recipe.variant
    named = config.exp / "decode" / variant / method / name / "text"
    made = read_json(config.exp / "deploy" / variant / "deploy.json")
    trained = read_json(config.exp / "train.json")
    output = config.exp / "cell.json"
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
        **_scored(config, name, named),
    }
    if "encoder_stack" in made["parameters"]:
        result["stack_parameters"] = made["parameters"]["encoder_stack"]
    write_json(output, result)
    _stamp(cell, part, espnet).write([output])
    return config


def _remove_models(config: Config, is_start: bool) -> None:
    """Remove all checkpoints, but not the average from which other trainings start."""
    average = train.averaged_model(config).resolve()
    for model in config.exp.rglob("*.pth"):
        if not (is_start and model.resolve() == average):
            model.unlink()


def _scored(config: Config, name: str, hypotheses: Path) -> dict[str, Any]:
    """What was decided about a set, for ``summarise``: of classes with their scores."""
    reference, utt2spk = (Path("data") / name / f for f in (config.recipe.target_file, "utt2spk"))
    if config.recipe.task == "cls":
        decisions = read_decisions(reference, hypotheses, utt2spk, classes_of(config))
        if config.recipe.vote:
            decisions = vote(decisions)
        lists = {key: getattr(decisions, key) for key in ("references", "hypotheses", "speakers")}
        return lists | metrics(decisions.references, decisions.hypotheses, decisions.classes)
    normalise = collapse_blanks if config.recipe.task == "st" else normalise_text
    pairs = read_pairs(reference, hypotheses, normalise=normalise)
    return {"references": pairs.references, "hypotheses": pairs.hypotheses}


def summarise(grid: Grid, cells: list[Cell]) -> dict[str, Any]:
    """Write grid.json and its plots, print the table; return what grid.json holds."""
    from espnet_ext.bridge.run_record import together
    from espnet_ext.results.pages.tables import print_table
    from espnet_ext.results.run import recipe_names

    results = [read_json(config_path(cell).with_name("cell.json")) for cell in cells]
    config = load_config(config_path(cells[0]), cells[0].tag)
    dataset, task = recipe_names(Path.cwd())
    is_cls = config.recipe.task == "cls"
    pages: Any = grids if is_cls else text_grids
    record: dict[str, Any] = {
        "dataset": dataset,
        "task": task,
        **pages.summary(grid, results, classes_of(config) if is_cls else config.recipe.target),
        **{key: together([result[key] for result in results]) for key in MADE_BY},
        "command": f"espnet-ext grid conf/grid_{grid.name}.yaml",
    }
    folder = Path("exp") / f"grid_{grid.name}"
    pages.check(record, f"grid {grid.name}")
    write_json(folder / "grid.json", record)
    for path in pages.plot(record, folder):
        print(f"wrote {path}")
    print_table(*pages.table(record))
    if not is_cls:
        print_table(*text_grids.comparisons(record))
    for line in pages.notes(record):
        print(line)
    return record


def _publish(record: dict[str, Any]) -> None:
    """Copy a summary into results/ of the repository and regenerate RESULTS.md."""
    from espnet_ext.results.run import publishing_root

    root = publishing_root()
    target = root / "results" / f"{record['dataset']}_{record['task']}" / "grids"
    write_json(target / f"{record['grid']}.json", record)
    pages = text_grids if text_grids.is_text_grid(record) else grids
    pages.plot(record, target, kind="svg")
    regenerate(root / "results")
