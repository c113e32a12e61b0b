"""What similarity and pruning of stacks found: schemas, tables, notes and plots of their files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.files import write_json
from espnet_ext.results.pages.tables import markdown
from espnet_ext.results.schema import (
    Check,
    count,
    interval,
    items,
    mapping,
    named,
    number,
    optional,
    plain,
    read_validated,
    text,
    validate,
)

MEASURES = ("cosine", "cka", "knn")
SHARE = 0.95  # of the whole stack's accuracy
RULE = "largest mean similarity inside blocks minus that across blocks"

_MATRIX = items(items(number))
_MODEL = mapping(path=text, family=text, layers=count, width=count, sha256=text)
_MADE: dict[str, Check] = {
    "dataset": text,
    "task": text,
    "name": text,
    "model": _MODEL,
    "time": text,  # flat: frames one after the other; mean: their mean
    "seconds": optional(number),  # utterances were cut off after
    "batch_size": count,
    "k": items(count),
    "commit": text,
    "versions": named(text),
    "machine": named(plain),
    "command": text,
}
SIMILARITY = mapping(
    **_MADE,
    set=text,
    utterances=count,
    batches=count,
    cosine=_MATRIX,  # (layers, layers), of the outputs of the first to the last layer
    cka=_MATRIX,
    knn=_MATRIX,  # averaged over k
    knn_by_k=named(_MATRIX),
    rule=text,
    blocks=mapping(
        **{name: mapping(first_layers=optional(items(count)), contrast=number) for name in MEASURES}
    ),
)
PRUNING = mapping(
    **_MADE,
    probes=items(text),
    metric=text,
    score_set=text,
    set=text,
    utterances=count,
    classes=items(text),
    chance=number,  # one over the number of classes
    majority=number,  # of always naming the commonest class
    full=number,  # of the whole stack
    repeats=count,
    protected=items(count),
    orders=items(
        mapping(
            order=text,
            removable=count,  # layers, with the mean at SHARE of full or above up to there
            sequences=items(items(count)),  # layers as they go, in every repeat
            points=items(
                mapping(
                    removed=count,
                    parameters=count,  # of the stack left, without its front end
                    value=number,  # on the whole set, mean over repeats
                    interval=interval,  # 2.5 to 97.5 % over repeats, each on many resampled sets
                )
            ),
        )
    ),
)
_KINDS: dict[str, Check] = {"similarity": SIMILARITY, "pruning": PRUNING}


def check(record: Mapping[str, Any], kind: str, source: str) -> None:
    """Raise UserError if a record of ``kind`` (similarity, pruning) does not fit its schema."""
    validate(record, _KINDS[kind], source)


def similarity_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row a measure, with the blocks that it shows."""
    header = ["measure", "neighbouring layers, mean (range)", "blocks of layers", "contrast"]
    rows = []
    for name in MEASURES:
        matrix, block = record[name], record["blocks"][name]
        beside = [matrix[i][i + 1] for i in range(len(matrix) - 1)] or [1.0]
        mean = f"{sum(beside) / len(beside):.3f} ({min(beside):.3f}-{max(beside):.3f})"
        cuts = [0, *(block["first_layers"] or []), len(matrix)]
        spans = [f"{a}-{b - 1}" for a, b in zip(cuts, cuts[1:], strict=False)]
        rows.append([name, mean, ", ".join(spans), f"{block['contrast']:.3f}"])
    return header, rows


def pruning_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row an order, a column a number of layers removed."""
    counts = [point["removed"] for point in record["orders"][0]["points"]]
    header = ["order", *(f"-{n}" if n else "all layers" for n in counts)]
    header += [f"removable at {SHARE:.0%}", "goes first"]
    rows = []
    for order in record["orders"]:
        cells = [
            f"{p['value']:.3f} ({p['interval'][0]:.3f}-{p['interval'][1]:.3f})"
            for p in order["points"]
        ]
        share = order["removable"] / record["model"]["layers"]
        first = sorted({tuple(sequence) for sequence in order["sequences"]})
        shown = " or ".join(" ".join(map(str, sequence)) for sequence in first[:3])
        more = f" (and {len(first) - 3} more)" if len(first) > 3 else ""
        rows.append([order["order"], *cells, f"{order['removable']} ({share:.0%})", shown + more])
    return header, rows


def notes(record: Mapping[str, Any], kind: str) -> list[str]:
    """Return what must be read with the table."""
    model = record["model"]
    vectors = {"flat": "all frames of an utterance as one vector", "mean": "means over time"}
    cut = "" if record["seconds"] is None else f", cut after {record['seconds']:g} s"
    lines = [
        f"{model['path']}: {model['family']}, {model['layers']} layers of {model['width']}; "
        f"{vectors[record['time']]}{cut}, batches of {record['batch_size']}, "
        f"k = {', '.join(map(str, record['k']))}."
    ]
    if kind == "similarity":
        lines.append(
            f"{record['utterances']} utterances of {record['set']} in {record['batches']} batches; "
            f"layers count from 0; blocks: {record['rule']}."
        )
        return lines
    lines.append(
        f"Scored on {record['score_set']}, {record['metric']} on {record['set']} "
        f"({record['utterances']} utterances), no retraining; {record['repeats']} repeats: a "
        "probe, a draw of batches to score on; bands: 2.5 to 97.5 % over repeats and resampled "
        f"sets. Layers {', '.join(map(str, record['protected']))} stay."
    )
    lines.append(
        f"Whole stack {record['full']:.3f}; chance {record['chance']:.3f}; "
        f"always the commonest class {record['majority']:.3f}."
    )
    return lines


def page_lines(record: Mapping[str, Any], kind: str, folder: str) -> list[str]:
    """Return the section of RESULTS.md."""
    titles = {"similarity": "Similarity of layers", "pruning": "Pruning without retraining"}
    name = record["name"]
    lines = [f"### {titles[kind]}: {name}", "", markdown(*_TABLES[kind](record)), ""]
    lines += [f"- {note}" for note in notes(record, kind)]
    lines += [f"- command: `{record['command']}`; commit {record['commit']}"]
    return [*lines, "", f"![{titles[kind].lower()} of {name}]({folder}/{kind}/{name}.svg)"]


def plot(record: Mapping[str, Any], kind: str, path: Path) -> None:
    """Draw the heat maps of a similarity record, or the curves of a pruning record."""
    (_heat_maps if kind == "similarity" else _curves)(record, path)


def _heat_maps(record: Mapping[str, Any], path: Path) -> None:
    from espnet_ext.results.pages.plots import new_figure, save_figure

    figure, axes = new_figure(len(MEASURES))
    for axis, name in zip(axes, MEASURES, strict=True):
        image = axis.imshow(record[name], vmin=0, vmax=1, origin="lower", cmap="viridis")
        for first in record["blocks"][name]["first_layers"] or []:
            axis.axhline(first - 0.5, color="white", linestyle="--")
            axis.axvline(first - 0.5, color="white", linestyle="--")
        contrast = record["blocks"][name]["contrast"]
        axis.set(xlabel="layer", ylabel="layer", title=f"{name}, contrast {contrast:.2f}")
        for which in (axis.xaxis, axis.yaxis):
            which.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axis, shrink=0.8)
    save_figure(figure, path)


def _curves(record: Mapping[str, Any], path: Path) -> None:
    from espnet_ext.results.pages.plots import new_figure, save_figure

    figure, axes = new_figure(len(record["orders"]))
    for axis, order in zip(axes, record["orders"], strict=True):
        points = order["points"]
        removed = [point["removed"] for point in points]
        axis.plot(removed, [point["value"] for point in points], marker="o")
        low, high = zip(*(point["interval"] for point in points), strict=True)
        axis.fill_between(removed, low, high, alpha=0.25)
        label = f"{SHARE:.0%} of all layers'"
        axis.axhline(SHARE * record["full"], color="green", linestyle="--", label=label)
        axis.axhline(record["chance"], color="gray", linestyle=":", label="chance")
        axis.set(xlabel="layers removed", ylabel=record["metric"].replace("_", " "))
        axis.set_title(order["order"])
        axis.set_ylim(bottom=0.0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


_TABLES: dict[str, Callable[[Mapping[str, Any]], tuple[list[str], list[list[str]]]]] = {
    "similarity": similarity_table,
    "pruning": pruning_table,
}


def table(record: Mapping[str, Any], kind: str) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of a record."""
    return _TABLES[kind](record)


def publish(record: Mapping[str, Any], kind: str, results: Path) -> None:
    """Write a record and its plot into the folder of the committed results."""
    target = results / f"{record['dataset']}_{record['task']}" / kind
    write_json(target / f"{record['name']}.json", record)
    plot(record, kind, target / f"{record['name']}.svg")


def read_stacks(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read and check ``<folder>/<dataset>_<task>/<kind>/*.json``: (kind, record), in order.

    Raises:
        UserError: a file is not JSON or does not fit the schema.
    """
    return [
        (kind, read_validated(path, schema, "publish that record again"))
        for kind, schema in _KINDS.items()
        for path in sorted(folder.glob(f"*/{kind}/*.json"))
    ]


def sections(
    found: Sequence[tuple[str, Mapping[str, Any]]], corpus: str, folder: str
) -> list[list[str]]:
    """Return the sections of RESULTS.md for the records of one corpus."""
    return [
        page_lines(record, kind, f"{folder}/{corpus}")
        for kind, record in found
        if f"{record['dataset']}_{record['task']}" == corpus
    ]
