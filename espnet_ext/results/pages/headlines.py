"""The results that README.md and RESULTS.md show first."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.results.claims.evidence import GridPair, Pair, RunPair, find_row
from espnet_ext.results.comparison import Comparison
from espnet_ext.results.grids import Grid, GridSystem
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.pages.families import without_families
from espnet_ext.results.pages.grids import grid_value
from espnet_ext.results.pages.scores import value
from espnet_ext.results.pages.text import Table, megabytes
from espnet_ext.results.schema import NOT_MEASURED, Result, Score
from espnet_ext.results.store import Results, baseline_of
from espnet_ext.validation import Items, Strict, Text, parse
from espnet_ext.yaml_files import read_yaml


@dataclass(frozen=True)
class Entry:
    """A system on one metric: name, size and score as text, and how good it is.

    Attributes:
        gain: the score, negative where less is better.
        comparison: with its baseline; None if it was not compared.
        is_smaller: than its baseline, deployed.
        split: the folds of a grid's trainings; None: the fixed sets.
    """

    name: str
    size: str
    score: str
    gain: float
    comparison: Comparison | None
    is_smaller: bool
    split: str | None = None


def _of_run(run: Result, score: Score, metric: str, baseline: Result | None = None) -> Entry:
    sizes = [run.bytes, NOT_MEASURED if baseline is None else baseline.bytes]
    smaller = NOT_MEASURED not in sizes and int(sizes[0]) < int(sizes[1])
    return Entry(
        name=run.name,
        size=NOT_MEASURED if run.bytes == NOT_MEASURED else f"{megabytes(run.bytes)} MB",
        score=f"{METRICS[metric].name} {value(score, metric, by_speaker=False)}",
        gain=METRICS[metric].direction * score.metrics[metric].value,
        comparison=score.compared(metric),
        is_smaller=smaller,
    )


def _of_grid(grid: Grid, row: GridSystem, metric: str) -> Entry:
    """An entry of a grid, against the largest system that it was compared with."""
    sizes = {other.system: other.parameters for other in grid.systems}
    pairs = [found for found in row.comparisons if found.metric == metric]
    largest = max(pairs, key=lambda pair: sizes[pair.baseline], default=None)
    return Entry(
        name=row.system,
        size=f"{row.parameters / 1e6:.{2 if row.parameters >= 1e4 else 4}f} M params",
        score=f"{METRICS[metric].name} {grid_value(row.scores[metric], metric)}",
        gain=METRICS[metric].direction * row.scores[metric].value,
        comparison=largest,
        is_smaller=largest is not None and row.parameters < sizes[largest.baseline],
        split=grid.split,
    )


def recipes_table(results: Results) -> Table:
    """A row for each recipe, by its name in brackets: its best systems of either kind.

    On the main metric and the first set, or the same folds; grids of dev sets are left out. A run
    does not compare with classifiers' grids, whose scores are means over speakers: they alone count
    then, since they have more seeds.
    """
    rows = []
    for name, recipe in results.recipes.items():
        grids = [grid for grid in recipe.grids.values() if grid.part != "dev"]
        entries = [_of_grid(grid, row, grid.metrics[0]) for grid in grids for row in grid.systems]
        if all(grid.classes is None for grid in grids):
            runs = list(recipe.runs.values())
            entries += [
                _of_run(run, run.scores[0], run.scores[0].main_metric, baseline_of(run, runs))
                for run in runs
            ]
        whole = _best(entry for entry in entries if not entry.is_smaller)
        smaller = _best(
            e for e in entries if e.is_smaller and (not whole or e.split == whole.split)
        )
        # Without its interval the line is short enough to be read.
        rows.append([f"[{name}]", _words(whole).partition(" (")[0], _words(smaller)])
    return ["recipe", "best at full size", "best that is smaller than its baseline"], rows


def _best(entries: Iterable[Entry]) -> Entry | None:
    return max(entries, key=lambda entry: entry.gain, default=None)


def _words(best: Entry | None) -> str:
    if best is None:
        return "none"
    text = f"{best.name}, {best.size}: {best.score}"
    return text.replace("weighted ", "").replace(" params", "")


class Headline(Strict):
    """A comparison that README.md shows; ``against`` names the baseline for a reader."""

    title: Text
    evidence: Pair
    against: Text


class Headlines(Strict):
    """The file results/headlines.yaml."""

    headlines: Items[Headline]


def headlines_table(results: Results, folder: Path) -> Table:
    """A row for each headline; without a file of them, for each run that no family shows.

    Raises:
        UserError: the file does not fit, or names a result that is not there.
    """
    path, found = folder / "headlines.yaml", []
    if path.is_file():
        for headline in parse(Headlines, read_yaml(path), path).headlines:
            try:
                entry = _of_pair(headline.evidence, results)
                found.append((headline.title, headline.against, entry))
            except UserError as error:
                raise UserError(f"{path}: {headline.title}: {error}") from None
    else:
        for recipe in results.recipes.values():
            for run in without_families(recipe.runs.values()):
                score = run.scores[0]
                entry = _of_run(run, score, score.main_metric)
                against = "" if entry.comparison is None else entry.comparison.baseline
                found.append((run.name, against, entry))
    rows = [
        [title, entry.size, entry.score.removeprefix("weighted "), _cost(entry, against)]
        for title, against, entry in found
    ]
    return ["model", "size", "score (95 % CI)", "against"], rows


def _of_pair(pair: GridPair | RunPair, results: Results) -> Entry:
    if not pair.is_published(results):
        raise UserError(f"no result {pair.result}")
    found = pair.compared(results).comparison
    if isinstance(pair, GridPair):
        entry = _of_grid(pair.record(results), find_row(pair, results, pair.system), found.metric)
    else:
        entry = _of_run(pair.record(results), pair.score(results), found.metric)
    return replace(entry, comparison=found)  # the one that is named, of several


def _cost(entry: Entry, against: str) -> str:
    found = entry.comparison
    if found is None:
        return NOT_MEASURED
    return f"{against}: {found.kind.number(found.difference, '+')}, {found.verdict()}"
