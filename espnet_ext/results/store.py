"""The folder of committed results: which file holds what, reading and writing.

results/<dataset>_<task>/<run>.json
results/<dataset>_<task>/{grids,similarity,pruning}/<name>.json
results/benchmarks/<name>.json
results/claims/<paper>.yaml          (``results.claims``)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.results.benchmarks import Benchmark
from espnet_ext.results.grids import Grid
from espnet_ext.results.schema import Record, Result
from espnet_ext.results.stacks import Pruning, Similarity
from espnet_ext.score.pairs import baseline_variant, split_baseline
from espnet_ext.validation import read_model

BENCHMARKS = "benchmarks"


@dataclass(frozen=True)
class Results:
    """Committed results by name: <dataset>_<task>/<name>; benchmarks by the file's name."""

    runs: Mapping[str, Result] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    similarity: Mapping[str, Similarity] = field(default_factory=dict)
    pruning: Mapping[str, Pruning] = field(default_factory=dict)
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)

    @property
    def stacks(self) -> "list[Similarity | Pruning]":
        """Similarity and pruning of stacks."""
        return [*self.similarity.values(), *self.pruning.values()]

    @property
    def recipes(self) -> dict[str, "Results"]:
        """The results of each recipe."""
        records = [*self.runs.values(), *self.grids.values(), *self.stacks]
        return {name: self._of(name) for name in dict.fromkeys(r.recipe for r in records)}

    def _of(self, recipe: str) -> "Results":
        def select[R: Record](records: Mapping[str, R]) -> dict[str, R]:
            return {name: record for name, record in records.items() if record.recipe == recipe}

        return Results(
            select(self.runs), select(self.grids), select(self.similarity), select(self.pruning)
        )


def read_results(folder: Path) -> Results:
    """Read and check every result in ``folder``, in the order of the files' names.

    Raises:
        UserError: a file is not JSON or does not fit its schema, or its name is not that of the
            result that it holds.
    """
    return Results(
        runs=dict(_read(folder, "*/*.json", Result)),
        grids=dict(_read(folder, "*/grids/*.json", Grid)),
        similarity=dict(_read(folder, "*/similarity/*.json", Similarity)),
        pruning=dict(_read(folder, "*/pruning/*.json", Pruning)),
        benchmarks={
            path.stem: read_model(Benchmark, path, "run the benchmark again")
            for path in sorted((folder / BENCHMARKS).glob("*.json"))
        },
    )


def _read[R: Record](folder: Path, pattern: str, model: type[R]) -> Iterator[tuple[str, R]]:
    for path in sorted(folder.glob(pattern)):
        if path.parent.name == BENCHMARKS:
            continue
        record = read_model(model, path, "publish it again")
        if path != (place := path_of(folder, record)):
            raise UserError(f"{path}: holds the result of {place}; move it")
        yield f"{record.recipe}/{path.stem}", record


def path_of(folder: Path, record: Record) -> Path:
    """Where a result is committed; of a run, one file for each variant."""
    return folder / record.recipe / folder_of(record) / f"{name_of(record)}.json"


def folder_of(record: Record) -> str:
    """Folder of a result, below its recipe's."""
    return {Grid: "grids", Similarity: "similarity", Pruning: "pruning"}.get(type(record), "")


def name_of(record: Record) -> str:
    """Name of a result's file, without suffix."""
    assert isinstance(record, Result | Grid | Similarity | Pruning)
    return record.name


def baseline_of(result: Result, among: Iterable[Result], named: str | None = None) -> Result | None:
    """The run that ``result`` was compared with, if it is among others.

    ``named``: the baseline in question; default: the first of the first score.
    """
    named = named or result.scores[0].baseline
    if named is None:
        return None
    others = list(among)
    tag, variant = split_baseline(named, {run.tag for run in others}.__contains__)
    runs = {run.variant: run for run in others if run.tag == tag}
    chosen = baseline_variant(runs, result.variant, variant)
    return None if chosen is None else runs[chosen]
