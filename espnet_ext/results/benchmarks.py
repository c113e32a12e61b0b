"""The table that a program of benchmarks/ prints and writes."""

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.files import write_text
from espnet_ext.results.environment import environment
from espnet_ext.results.pages.text import print_table
from espnet_ext.results.schema import SCHEMA_VERSION, Measured, Origin, dumps
from espnet_ext.validation import Items, Json, Named, Text, parse


class Benchmark(Origin):
    """A table that a program of benchmarks/ made, and everything that it measured."""

    commit: Measured[Text]
    title: Text
    about: Text
    header: Items[Text]
    rows: Items[list[str]]
    notes: list[Text]
    measured: Named[Json]


def finish(table: Mapping[str, Any], measured: Mapping[str, Any], path: str | None) -> None:
    """Print a table; write it, with everything that was measured, if a path is given.

    Args:
        table: title, about, header, rows and notes, as ``Benchmark`` has them.
        measured: what the table was made from.
        path: of the JSON file.
    """
    print_table(table["header"], table["rows"])
    for note in table["notes"]:
        print(note)
    if path is not None:
        program = Path(sys.argv[0])
        if program.is_absolute():  # no folder of this machine
            program = Path("benchmarks", program.name)
        record = {
            "schema_version": SCHEMA_VERSION,
            "command": f"python {shlex.join([str(program), *sys.argv[1:]])}",
            **environment(),
            **table,
            "measured": measured,
        }
        write_text(path, dumps(parse(Benchmark, record, path)))


def median_range(values: Sequence[float], digits: int) -> str:
    """The median of values, with the least and the largest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
