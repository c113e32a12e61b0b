"""Similarity and pruning of stacks of layers: tables and notes."""

from espnet_ext.results.metrics import METRICS
from espnet_ext.results.pages.text import Table, markdown
from espnet_ext.results.stacks import MEASURES, SHARE, Pruning, Similarity


def stack_table(record: Similarity | Pruning) -> Table:
    """The table of a record."""
    return _similarity(record) if isinstance(record, Similarity) else _pruning(record)


def _similarity(record: Similarity) -> Table:
    """A row for each measure, with the blocks that it shows."""
    header = ["measure", "neighbouring layers, mean (range)", "blocks of layers", "contrast"]
    rows = []
    for name in MEASURES:
        matrix, blocks = record.matrix(name), record.blocks[name]
        near = [matrix[i][i + 1] for i in range(len(matrix) - 1)] or [1.0]
        mean = f"{sum(near) / len(near):.3f} ({min(near):.3f}-{max(near):.3f})"
        cuts = [0, *(blocks.first_layers or []), len(matrix)]
        spans = [f"{a}-{b - 1}" for a, b in zip(cuts, cuts[1:], strict=False)]
        rows.append([name, mean, ", ".join(spans), f"{blocks.contrast:.3f}"])
    return header, rows


def _pruning(record: Pruning) -> Table:
    """A row for each order, a column for each number of removed layers."""
    metric = METRICS[record.metric]
    counts = [point.removed for point in record.orders[0].points]
    header = ["order", *(f"-{n}" if n else "all layers" for n in counts)]
    header += [f"removable at {SHARE:.0%}", "removed in this order"]
    rows = []
    for order in record.orders:
        cells = [f"{metric.number(p.value)} ({metric.range(p.interval)})" for p in order.points]
        share = order.removable / record.model.layers
        sequences = sorted({tuple(sequence) for sequence in order.sequences})
        shown = " or ".join(" ".join(map(str, sequence)) for sequence in sequences[:3])
        more = f" (and {len(sequences) - 3} more)" if len(sequences) > 3 else ""
        rows.append([order.order, *cells, f"{order.removable} ({share:.0%})", shown + more])
    return header, rows


def notes(record: Similarity | Pruning) -> list[str]:
    """Return how the numbers of the table were made."""
    model = record.model
    vectors = {"flat": "all frames of an utterance as one vector", "mean": "means over time"}
    cut = "" if record.seconds is None else f", cut after {record.seconds:g} s"
    first = (
        f"{model.path}: {model.family}, {model.layers} layers of {model.width}; "
        f"{vectors[record.time]}{cut}, batches of {record.batch_size}, "
        f"k = {', '.join(map(str, record.k))}."
    )
    if isinstance(record, Similarity):
        return [
            first,
            f"{record.utterances} utterances of {record.set} in {record.batches} batches; "
            f"layers count from 0; blocks: {record.rule}.",
        ]
    return [
        first,
        f"Scored on {record.score_set}, {METRICS[record.metric].title} on {record.set} "
        f"({record.utterances} utterances), no retraining; {record.repeats} repeats, each a "
        "model and a draw of batches to score on; bars: 2.5 to 97.5 % over repeats and resampled "
        f"sets. Layers {', '.join(map(str, record.protected))} stay.",
        _levels(record),
    ]


def _levels(record: Pruning) -> str:
    """The score of the whole stack, and what trivial answers have."""
    metric = METRICS[record.metric]
    found = f"Whole stack {metric.number(record.full)}"
    if record.chance is not None and record.majority is not None:
        found += f"; chance {metric.number(record.chance)}"
        found += f"; always the commonest class {metric.number(record.majority)}"
    return f"{found}."


def stack_section(record: Similarity | Pruning) -> list[str]:
    """Return the record's section of its recipe's page."""
    kind, title = "pruning", "Pruning without retraining"
    if isinstance(record, Similarity):
        kind, title = "similarity", "Similarity of layers"
    lines = [f"### {title}: {record.name}", "", markdown(*stack_table(record)), ""]
    lines += [f"- {note}" for note in notes(record)]
    lines += [f"- command: `{record.command}`; commit {record.commit}", ""]
    return [*lines, f"![{title.lower()} of {record.name}]({kind}/{record.name}.svg)"]
