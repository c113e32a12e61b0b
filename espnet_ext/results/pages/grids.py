"""Grids of trainings: tables and notes."""

from collections.abc import Iterable, Iterator

from espnet_ext.results.grids import POOLED, Grid, GridSystem, GridValue
from espnet_ext.results.metrics import ALWAYS, METRICS
from espnet_ext.results.pages.text import Table, duration, macs, markdown
from espnet_ext.results.plots.grids import sweep
from espnet_ext.score.significance.seeds import RESAMPLES

_FEW = 12  # classes that a cell names
_COLUMNS = 30  # classes that have a column each


def short_table(record: Grid) -> Table:
    """A row for each system, with the comparison with the baseline: for the terminal."""
    metric = METRICS[record.metrics[0]]
    score = f"{metric.title} (95 % CI)"
    rows = []
    for row in record.systems:
        cells = {"system": row.system, "params": f"{row.parameters:,}"}
        cells |= _stack_size(record, row) | {"in training": f"{row.training_parameters:,}"}
        cells[score] = grid_value(row.scores[metric.key], metric.key)
        if record.baseline is not None:
            cells[f"against {record.baseline}"] = _against_baseline(record, row)
        rows.append(cells)
    return _table([*rows, *_always(record, rows[0], score, ", pooled")])


def _table(rows: list[dict[str, str]]) -> Table:
    return list(rows[0]), [list(cells.values()) for cells in rows]


def _always(
    record: Grid, columns: Iterable[str], column: str, suffix: str = ""
) -> Iterator[dict[str, str]]:
    """The row of the classifier that learns nothing, with its score in ``column``."""
    if record.majority is not None:
        value = METRICS[POOLED].number(record.majority) + suffix
        yield dict.fromkeys(columns, "") | {"system": ALWAYS, column: value}


def _stack_size(record: Grid, row: GridSystem) -> dict[str, str]:
    """The size of the stack alone, in grids of pretrained models."""
    if all(other.stack_parameters is None for other in record.systems):
        return {}
    size = row.stack_parameters
    return {"of the stack": "none" if size is None else f"{size:,}"}


def scores_table(record: Grid) -> Table:
    """A row for each system: all metrics and, of classifiers, the comparison with the baseline.

    A classifiers' grid ends with the score of always naming the commonest class.
    """
    rows = []
    for row in record.systems:
        cells = {"system": row.system}
        for key in record.metrics:
            name = METRICS[key].title
            if record.classes is not None and key != POOLED:
                name += f", mean of {record.unit}s"
            cells[name] = grid_value(row.scores[key], key, record.unit)
        if record.classes is not None:
            missed = [name for name, f1 in (row.per_class or {}).items() if f1 == 0]
            few = len(missed) <= _FEW
            cells["F1 = 0"] = (
                ", ".join(missed) if few else f"{len(missed)} of {len(record.classes)}"
            )
            cells["F1 = 0"] = cells["F1 = 0"] or "none"
            cells["against the baseline"] = _against_baseline(record, row)
        rows.append(cells)
    return _table([*rows, *_always(record, rows[0], METRICS[POOLED].title)])


def sizes_table(record: Grid) -> Table:
    """A row for each system: its training, sizes and operations."""
    rows = []
    for row in record.systems:
        cells = {"system": row.system}
        if record.classes is None:
            cells["starts from"] = row.after or "as its config says"
        cells |= {"seeds": str(len(row.seeds)), "params": f"{row.parameters:,}"}
        cells |= _stack_size(record, row) | {"in training": f"{row.training_parameters:,}"}
        cells["MACs/s"] = macs(row.macs_per_second)
        cells["a training"] = duration(row.training_seconds)
        rows.append(cells)
    return _table(rows)


def grid_value(found: GridValue, metric: str, unit: str = "") -> str:
    """A value with its interval and, with a ``unit``, its deviations over units and seeds."""
    kind = METRICS[metric]
    details = [] if found.interval is None else [kind.range(found.interval)]
    if unit:
        deviations = {f"{unit}s": found.over_units, "seeds": found.over_seeds}
        details += [f"sd of {k} {kind.number(v)}" for k, v in deviations.items() if v is not None]
    return kind.number(found.value) + (f" ({'; '.join(details)})" if details else "")


def _against_baseline(record: Grid, row: GridSystem) -> str:
    found = row.compared(record.metrics[0], record.baseline or "")
    if found is not None:
        return found.cell()
    return "baseline" if row.system == record.baseline else "no comparison"


def comparisons(record: Grid) -> Table:
    """A row for each pair of systems that the grid's file names."""
    header = ["system", "against", "seeds"]
    header += [f"{METRICS[metric].name} difference" for metric in record.metrics]
    rows = []
    for row in record.systems:
        for other in dict.fromkeys(found.baseline for found in row.comparisons):
            pairs = [row.compared(metric, other) for metric in record.metrics]
            seeds = next((len(pair.by_seed) for pair in pairs if pair and pair.by_seed), 1)
            cells = ["" if pair is None else pair.cell() for pair in pairs]
            rows.append([row.system, other, str(seeds), *cells])
    return header, rows


def class_table(record: Grid) -> Table:
    """F1 by class, pooled over folds, mean over seeds."""
    classes = record.classes or []
    rows = [
        [row.system, *(f"{(row.per_class or {})[label]:.3f}" for label in classes)]
        for row in record.systems
    ]
    return ["F1 by class", *classes], rows


def notes(record: Grid) -> list[str]:
    """Return how the numbers of the tables were made."""
    seeds = ", ".join(map(str, record.seeds))
    if record.classes is None:
        what = "; ".join(dict.fromkeys((record.signatures or {}).values()))
        if record.target is not None and record.signatures:
            found = (f"{METRICS[metric].name} {text}" for metric, text in record.signatures.items())
            what = f"sacreBLEU, from 0 to 100: {', '.join(found)}"
        return [
            f"set {record.part}: {record.units} utterances, {record.words:,} words; seeds {seeds}; "
            f"{what}.",
            "A score is the mean over seeds. Intervals and p are of a bootstrap that draws "
            f"utterances and seeds ({RESAMPLES:,} draws; two systems on the same ones, seed by "
            "seed); of a system with one seed it draws utterances alone. Of twenty pairs of equal "
            "systems, one has p < 0.05.",
        ]
    known = ", ".join(f"{name} {score:.3f}" for name, score in (record.known or {}).items())
    return [
        f"{record.split or 'the fixed split'}: {record.folds} folds, seeds {seeds}, "
        f"{record.decisions} decisions a seed on {record.part}.",
        *([f"Known from elsewhere: {known}."] if known else []),
        f"Intervals are Student's, over the {record.units} {record.unit}s. The test is a "
        f"paired permutation test over {record.unit}s, seeds averaged; folds share training "
        "data, so a p just below 0.05 is weak evidence.",
    ]


def grid_section(record: Grid) -> list[str]:
    """Return the grid's section of its recipe's page."""
    name, metric = record.name, METRICS[record.metrics[0]].name
    lines = [f"### Grid {name}", "", f"![{metric} of grid {name}](grids/{name}.svg)", ""]
    lines += [markdown(*scores_table(record)), "", markdown(*sizes_table(record)), ""]
    if record.classes is None:
        if any(row.comparisons for row in record.systems):
            lines += [markdown(*comparisons(record)), ""]
    else:
        if len(record.classes) <= _COLUMNS:
            lines += [markdown(*class_table(record)), ""]
        else:
            lines += [f"F1 of each of the {len(record.classes)} classes: `grids/{name}.json`.", ""]
    lines += [f"- {note}" for note in notes(record)]
    lines += [f"- command: `{record.command}`; commit {record.commit}"]
    if sweep(record):
        lines += ["", f"![curve of grid {name}](grids/{name}_curve.svg)"]
    if record.classes is not None:
        lines += ["", f"![confusions of grid {name}](grids/{name}_confusion.svg)"]
    return lines
