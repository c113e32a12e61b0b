"""The results that README.md and RESULTS.md show first."""

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

_MUCH = 1.01  # codebooks and learnt scales alone make no training model larger


@dataclass(frozen=True)
class Entry:
    """A system on one metric: name, size and score as text, and how good it is.

    Attributes:
        gain: the score, negative where less is better.
        comparison: with its baseline; None if it was not compared.
        is_compressed: smaller, deployed, than its baseline or than in training.
    """

    name: str
    size: str
    score: str
    gain: float
    comparison: Comparison | None
    is_compressed: bool


def _of_run(run: Result, score: Score, metric: str, baseline: Result | None = None) -> Entry:
    sizes = [parts for parts in (run.parameters, run.training.parameters) if not _unknown(parts)]
    totals = [parts.get("total", 0) for parts in sizes if isinstance(parts, dict)]
    smaller = len(totals) == 2 and _MUCH * totals[0] < totals[1]
    if baseline is not None and not _unknown(run.bytes) and not _unknown(baseline.bytes):
        smaller = smaller or int(run.bytes) < int(baseline.bytes)
    return Entry(
        name=run.name,
        size=NOT_MEASURED if _unknown(run.bytes) else f"{megabytes(run.bytes)} MB",
        score=f"{METRICS[metric].name} {value(score, metric, by_speaker=False)}",
        gain=METRICS[metric].direction * score.metrics[metric].value,
        comparison=score.compared(metric),
        is_compressed=smaller,
    )


def _unknown(found: object) -> bool:
    return found == NOT_MEASURED


def _of_grid(grid: Grid, row: GridSystem, metric: str) -> Entry:
    """An entry of a grid, against the largest system that it was compared with."""
    sizes = {other.system: other.parameters for other in grid.systems}
    pairs = [found for found in row.comparisons if found.metric == metric]
    largest = max(pairs, key=lambda pair: sizes[pair.baseline], default=None)
    before = max([row.training_parameters, *(sizes[pair.baseline] for pair in pairs)])
    return Entry(
        name=row.system,
        size=f"{row.parameters / 1e6:.2f} M params",
        score=f"{METRICS[metric].name} {grid_value(row.scores[metric], metric)}",
        gain=METRICS[metric].direction * row.scores[metric].value,
        comparison=largest,
        is_compressed=row.parameters < before,
    )


def recipes_table(results: Results) -> Table:
    """A row for each recipe, by its name in brackets: best baseline and best compressed system.

    On the main metric and the first set; grids of development sets are left out.
    """
    rows = []
    for name, recipe in results.recipes.items():
        runs = list(recipe.runs.values())
        entries = [
            _of_run(run, run.scores[0], run.scores[0].main_metric, baseline_of(run, runs))
            for run in runs
        ]
        for grid in recipe.grids.values():
            if grid.part != "dev":
                entries += [_of_grid(grid, row, grid.metrics[0]) for row in grid.systems]
        baselines = {_name(e.comparison.baseline) for e in entries if e.comparison}
        plain = [e for e in entries if e.name in baselines and not e.is_compressed]
        compressed = [e for e in entries if e.is_compressed and e.comparison is not None]
        # Without its interval the line is short enough to be read.
        rows.append([f"[{name}]", _best(plain).partition(" (")[0], _best(compressed)])
    return ["recipe", "best baseline", "best compressed system"], rows


def _name(baseline: str) -> str:
    """The name of a run that scores call TAG or TAG/VARIANT."""
    return baseline.removesuffix("/merged").replace("/", "_")


def _best(entries: list[Entry]) -> str:
    best = max(entries, key=lambda entry: entry.gain, default=None)
    if best is None:
        return "none"
    text = f"{best.name}, {best.size}: {best.score}"
    return text.replace("weighted ", "").replace(" params", "")


class Headline(Strict):
    """A comparison that README.md shows."""

    title: Text
    evidence: Pair


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
                found.append((headline.title, _of_pair(headline.evidence, results)))
            except UserError as error:
                raise UserError(f"{path}: {headline.title}: {error}") from None
    else:
        for recipe in results.recipes.values():
            for run in without_families(recipe.runs.values()):
                score = run.scores[0]
                found.append((run.name, _of_run(run, score, score.main_metric)))
    rows = [
        [title, entry.size, entry.score.removeprefix("weighted "), _cost(entry.comparison)]
        for title, entry in found
    ]
    return ["model", "size", "score (95 % CI)", "against its baseline"], rows


def _of_pair(pair: GridPair | RunPair, results: Results) -> Entry:
    if not pair.is_published(results):
        raise UserError(f"no result {pair.result}")
    found = pair.compared(results).comparison
    if isinstance(pair, GridPair):
        row = find_row(pair, results, pair.system)
        return replace(_of_grid(pair.record(results), row, found.metric), comparison=found)
    return _of_run(pair.record(results), pair.score(results), found.metric)


def _cost(found: Comparison | None) -> str:
    if found is None:
        return NOT_MEASURED
    return f"{found.kind.number(found.difference, '+')}, {found.verdict()}"
