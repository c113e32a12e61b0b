"""Published models that a benchmark ran next to a recipe's systems, on its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.results.benchmarks import Benchmark


@dataclass(frozen=True)
class Peer:
    """A published model in a format that people use.

    Attributes:
        label: program and model.
        set: of the recipe.
        utterances: of that set, on which it was run.
        bytes: of its files.
        wer: in percent.
        interval: 95 %, in percent.
    """

    label: str
    set: str
    utterances: int
    bytes: int
    wer: float
    interval: tuple[float, float]


def find_peers(benchmarks: Mapping[str, Benchmark], recipe: str) -> list[Peer]:
    """The published models that ``benchmarks/device.py`` ran on sets of a recipe."""
    found = []
    for record in benchmarks.values():
        measured = record.measured
        if measured.get("recipe") != recipe:
            continue
        for one in measured["systems"]:
            if one["published"] and "wer" in one:
                kind, _, path = one["system"].partition(":")
                label, (low, high) = f"{kind}, {Path(path).name}", one["interval"]
                where = measured["set"], measured["utterances"]
                found.append(Peer(label, *where, one["bytes"], one["wer"], (low, high)))
    return found
