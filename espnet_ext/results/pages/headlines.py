"""The results that README.md and RESULTS.md name first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

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


@dataclass(frozen=True)
class Entry:
    """A system on one metric.

    Attributes:
        name: of the run, or <grid>: <system>.
        size: of the deployed model, as text.
        score: with its interval, as text.
        gain: the score, negative where less is better.
        comparison: with its baseline; None if it was not compared.
        is_compressed: smaller, deployed, than its baseline or than in training.
    """

    name: str
    size: str
    score: str
    gain: float
    comparison: Comparison | None = None
    is_compressed: bool = False


def entries(results: Results) -> list[Entry]:
    """All systems of a recipe, on their main metric; grids of development sets left out."""
    runs = list(results.runs.values())
    found = [_run(run, run.scores[0], baseline_of(run, runs)) for run in runs]
    for grid in results.grids.values():
        if grid.part != "dev":
            found += [_system(grid, row, grid.metrics[0]) for row in grid.systems]
    return found


def _run(run: Result, score: Score, baseline: Result | None, metric: str = "") -> Entry:
    key = metric or score.main_metric
    smaller = _smaller(_total(run.parameters), _total(run.training.parameters))
    if baseline is not None:
        smaller = smaller or _smaller(run.bytes, baseline.bytes)
    return Entry(
        name=run.name,
        size=f"{megabytes(run.bytes)} MB" if run.bytes != NOT_MEASURED else NOT_MEASURED,
        score=f"{METRICS[key].name} {value(score, key, by_speaker=False)}",
        gain=METRICS[key].direction * score.metrics[key].value,
        comparison=score.compared(key),
        is_compressed=smaller,
    )


def _system(grid: Grid, row: GridSystem, metric: str, baseline: str = "") -> Entry:
    """An entry of a grid, against a baseline or the largest system that it was compared with."""
    sizes = {other.system: other.parameters for other in grid.systems}
    pairs = [c for c in row.comparisons if c.metric == metric and baseline in ("", c.baseline)]
    largest = max(pairs, key=lambda pair: sizes[pair.baseline], default=None)
    smaller = row.parameters < row.training_parameters
    if largest is not None:
        smaller = smaller or row.parameters < sizes[largest.baseline]
    return Entry(
        name=f"{grid.name}: {row.system}",
        size=f"{row.parameters / 1e6:.2f} M params",
        score=f"{METRICS[metric].name} {grid_value(row.scores[metric], metric)}",
        gain=METRICS[metric].direction * row.scores[metric].value,
        comparison=largest,
        is_compressed=smaller,
    )


def _total(parts: Mapping[str, int] | str) -> int | str:
    return NOT_MEASURED if isinstance(parts, str) else parts.get("total", NOT_MEASURED)


def _smaller(one: int | str, other: int | str) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one < other


def recipes_table(results: Results, folder: str) -> Table:
    """A row for each recipe: its best baseline and its best compressed system."""
    rows = []
    for name, of_recipe in results.recipes.items():
        found = entries(of_recipe)
        baselines = {e.comparison.baseline.partition("/")[0] for e in found if e.comparison}
        plain = [e for e in found if e.name.rpartition(" ")[2] in baselines and not e.is_compressed]
        compressed = [e for e in found if e.is_compressed and e.comparison is not None]
        row = [f"[{name}]({folder}/{name})"]
        for group in (plain, compressed):
            best = max(group, key=lambda entry: entry.gain, default=None)
            row.append("none" if best is None else _short(best))
        rows.append(row)
    return ["recipe", "best baseline", "best compressed system"], rows


def _short(entry: Entry) -> str:
    name = entry.name.rpartition(" ")[2]
    return f"{name}, {entry.size}: {entry.score}".replace("weighted ", "").replace(" params", "")


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
    path = folder / "headlines.yaml"
    rows = []
    if path.is_file():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for headline in parse(Headlines, content, path).headlines:
            try:
                entry = _evidence(headline.evidence, results)
            except UserError as error:
                raise UserError(f"{path}: {headline.title}: {error}") from None
            rows.append(_headline(headline.title, entry))
    else:
        for of_recipe in results.recipes.values():
            for run in without_families(of_recipe.runs.values()):
                rows.append(_headline(run.name, _run(run, run.scores[0], None)))
    return ["model", "size", "score (95 % CI)", "against its baseline"], rows


def _evidence(pair: GridPair | RunPair, results: Results) -> Entry:
    if not pair.is_published(results):
        raise UserError(f"no result {pair.result}")
    metric = pair.compared(results).comparison.metric
    if isinstance(pair, GridPair):
        row = find_row(pair, results, pair.system)
        return _system(pair.record(results), row, metric, pair.than)
    return _run(results.runs[pair.run], pair.score(results), None, metric)


def _headline(title: str, entry: Entry) -> list[str]:
    found = entry.comparison
    against = NOT_MEASURED
    if found is not None:
        against = f"{found.kind.number(found.difference, '+')}, {found.verdict()}"
    return [title, entry.size, entry.score.removeprefix("weighted "), against]
