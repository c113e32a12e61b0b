"""Tables and numbers as text; a number that was not measured says so."""

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from espnet_ext.results.schema import NOT_MEASURED, Decoding, Result

TERMINAL = 100  # columns that a printed table may take
_NAME = (16, 24)  # characters of a line of a name, in a table that is too wide: least, most
type Table = tuple[list[str], list[list[str]]]  # header, rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned so that it reads as plain text too."""
    cells = [[_escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _escape(cell: str) -> str:
    return without_tags(cell).replace("|", "\\|").replace("\n", " ")


def without_tags(text: str) -> str:
    """Return a text in which nothing is a tag of HTML: names in records come from anywhere."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as Markdown; cells are folded where it is wider than 100 columns.

    A narrower terminal has its width. Names are folded after a slash or an underscore.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else TERMINAL
    width = min(columns, TERMINAL)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > width:
        length = min(max(width // len(header), _NAME[0]), _NAME[1])
        header, *rows = [[_in_pieces(cell, length) for cell in row] for row in (header, *rows)]
    table = Table(box=box.MARKDOWN)
    pieces = " ".join([header[0], *(row[0] for row in rows)]).split()
    least = min(max(map(len, pieces), default=0), _NAME[1])  # names are cut no further
    for title in header:
        table.add_column(Text(title), overflow="fold")
    table.columns[0].min_width = least
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().strip().splitlines()))


def _in_pieces(cell: str, length: int) -> str:
    """A cell with a line for each piece of a long name, cut after a slash or an underscore."""

    def pieces(match: re.Match[str]) -> str:
        lines = [""]
        for part in re.findall(r"[^/_]+[/_]?|[/_]", match[0]):
            if lines[-1] and len(lines[-1] + part) > length:
                lines.append("")
            lines[-1] += part
        return "\n".join(lines)

    return re.sub(r"\S+", pieces, cell)


def paragraph(text: str) -> str:
    """A text folded to the width of a terminal."""
    return textwrap.fill(text, TERMINAL, break_long_words=False, break_on_hyphens=False)


def bullets(facts: Mapping[str, str]) -> list[str]:
    """A line for each fact."""
    return [f"- {label}: {fact}" for label, fact in facts.items()]


def parameters(result: Result) -> str:
    """The number of parameters of the deployed model, in millions."""
    found = result.parameters
    if isinstance(found, str) or "total" not in found:
        return NOT_MEASURED
    return f"{found['total'] / 1e6:.2f} M"


def megabytes(size: int | str) -> str:
    """A file's size in MB (10^6 bytes)."""
    return size if isinstance(size, str) else f"{size / 1e6:.2f}"


def macs(value: float | str) -> str:
    """Multiply-accumulates per second of audio, in millions or thousands of millions."""
    if isinstance(value, str):
        return value
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def duration(seconds: float | str) -> str:
    """A time span in the two units that matter."""
    if isinstance(seconds, str):
        return seconds
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def real_time_factor(log: Decoding, rounds: bool = False) -> str:
    """The real-time factor, on what it was measured if not on one CPU thread, and its range."""
    if isinstance(log.rtf, str):
        return NOT_MEASURED
    notes = []
    if log.threads == NOT_MEASURED:
        notes.append("threads not measured")
    elif log.threads != 1:
        notes.append(f"{log.threads} threads")
    if log.device not in ("cpu", NOT_MEASURED):
        notes.append(str(log.device))
    text = f"{log.rtf:.3g}" + (f" ({', '.join(notes)})" if notes else "")
    if rounds and not isinstance(log.rtf_rounds, str):
        load = "" if isinstance(log.load, str) else f", load {log.load:.1f}"
        text += f" ({min(log.rtf_rounds):.3g}-{max(log.rtf_rounds):.3g}{load})"
    return text


def number(value: Any) -> str:
    """Format a count with commas, any other number to four digits; a text stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def listed(parts: Any) -> str:
    """Parts by name: "encoder 1,604,448, ctc 14,550"."""
    if isinstance(parts, str):
        return parts
    return ", ".join(f"{key} {number(item)}" for key, item in parts.items())
