"""Train and score a whole grid: systems x folds x seeds, in parallel, resumable.

Reads conf/grids/<name>.yaml (``config/grid.py`` has the format). Stages 1 to 3 must have run.
Of a recogniser or a translator the words are scored instead of classes; a training that starts
from another's model (after, in the grid's file) comes after it.
Each training lies in exp/grid_<name>/<system>/<fold>_s<seed>/ and keeps there its decisions
(decode/), cell.json with its scores, and its logs; its checkpoints are removed unless
--keep_models is given. One that is done is skipped. The end is exp/grid_<name>/grid.json, a table
and plots. On a cluster let job K of N run --part K/N on a shared disk; each looks only
at the trainings of its part. --summary joins them at the end.

Example:
  espnet-ext grid conf/grids/voice.yaml --nj 4
  espnet-ext grid conf/grids/voice.yaml --part 3/20
  espnet-ext grid conf/grids/voice.yaml --summary
  espnet-ext grid conf/grids/voice.yaml --publish
"""

import argparse
from pathlib import Path

from espnet_ext.cli.options import add_publishing, publish_if_asked
from espnet_ext.config.grid import Grid, read_grid
from espnet_ext.config.training import load_config
from espnet_ext.data.parts import part
from espnet_ext.errors import UserError, at_least
from espnet_ext.stages.grid import GridRun, part_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("grid", help="grid file")
    parser.add_argument(
        "--nj", type=at_least(1), help="trainings at once, one thread each (default: 2; on GPUs 1)"
    )
    parser.add_argument(
        "--ngpu", type=at_least(0), default=0, help="GPUs of each training; 0: the CPU"
    )
    parser.add_argument("--part", type=part, help="K/N: only the Kth of N parts of the trainings")
    parser.add_argument("--summary", action="store_true", help="train nothing; join what is done")
    parser.add_argument("--keep_models", action="store_true", help="do not remove checkpoints")
    parser.add_argument("--dry_run", action="store_true", help="only count what would run")
    add_publishing(parser)
    parser.set_defaults(espnet=[])  # options after --


def run(args: argparse.Namespace) -> None:
    """Run what is not done, then summarise if nothing is left.

    Raises:
        UserError: a wrong grid, an earlier stage that has not run, or trainings that failed.
    """
    if args.part is not None and (args.summary or args.publish):
        raise UserError("--part trains a part: give --summary or --publish without it, at the end")
    jobs = args.nj or (1 if args.ngpu else 2)
    if args.ngpu and jobs > 1:
        raise UserError(
            f"--ngpu {args.ngpu}: trainings at once would share GPUs: give --nj 1, or run parts of "
            "the grid at once (--part K/N), each where it has separate GPUs"
        )
    grid = read_grid(Path(args.grid))
    _refuse_other_task(grid, args.grid)
    whole = GridRun(grid, tuple(args.espnet), args.keep_models, args.ngpu)
    cells = whole.cells()
    chosen = part_of(cells, args.part)
    todo = [cell for cell in chosen if not whole.is_done(cell)]
    print(f"grid: {len(cells)} trainings, {len(chosen) - len(todo)} of {len(chosen)} done")
    if args.dry_run:
        return
    if args.summary and todo:
        raise UserError(
            f"{len(todo)} of {len(cells)} trainings are not done, such as {todo[0].tag}; "
            "call this without --summary first"
        )
    if todo:
        whole.run(todo, jobs)
    if args.part is not None:
        print("grid: this part is done; when all are, --summary joins them")
        return
    from espnet_ext.results.pages.grids import comparisons, notes, short_table
    from espnet_ext.results.pages.text import print_table

    record, written = whole.summary(cells)
    print("\n".join(f"wrote {path}" for path in written))
    print_table(*short_table(record))
    if record.classes is None:
        print_table(*comparisons(record))
    print("\n".join(notes(record)))
    publish_if_asked(args, f"grid {grid.name}", record)


def _refuse_other_task(grid: Grid, path: str) -> None:
    """Raise UserError if a key of the grid's file has no meaning for what is trained."""
    is_cls = load_config(grid.systems[0].config).recipe.task == "cls"
    if is_cls and any(system.than or system.seeds for system in grid.systems):
        raise UserError(f"{path}: than and seeds of a system are for recognisers and translators")
    if not is_cls and (grid.split or grid.unit != "fold"):
        raise UserError(f"{path}: split and unit are for classifiers; leave them out")
