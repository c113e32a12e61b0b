"""Figures: their layout, axes, labels and files."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.files import atomic_path

_SETTINGS: Any = {
    "svg.hashsalt": "espnet-ext",  # the same results give the same file
    "svg.fonttype": "none",  # text as text, and a short list of fonts: a tenth of the size
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
}
MARKERS = "os^vDP*X"
_DPI = 120


def new_figure(
    panels: int, width: float = 4.8, height: float = 3.6, columns: int = 3
) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, at most ``columns`` in a row; sizes of a panel in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # drawn without pyplot: no display, no global state

    columns = min(panels, columns)
    rows = -(-panels // columns)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    return figure, axes


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure, cut to what is drawn; a file that would not change is not written."""
    import matplotlib

    drawn = io.BytesIO()
    kind = Path(path).suffix[1:]
    with matplotlib.rc_context(_SETTINGS):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(
            drawn, format=kind, metadata=metadata, dpi=_DPI, bbox_inches="tight", pad_inches=0.05
        )
    content = _compact(drawn.getvalue()) if kind == "svg" else drawn.getvalue()
    if not Path(path).is_file() or Path(path).read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def _compact(svg: bytes) -> bytes:
    """Drop what no viewer needs and cut coordinates to two decimals: a third of the size."""

    def shorter(tag: re.Match[bytes]) -> bytes:
        return b" ".join(re.sub(rb"(\.\d\d)\d+", rb"\1", tag[0]).split())

    font = rb" font-family: 'DejaVu Sans', sans-serif;?"
    for old, new in (
        (rb"(?s)<metadata>.*?</metadata>", b""),
        (rb"(?s)<!DOCTYPE.*?>", b""),
        (rb'<g id="[^"]*">', b"<g>"),
        (rb' transform="rotate\(-0 [^"]*"', b""),
        (font, b""),
        (rb"(\*\{[^}]*\})", rb"\1 text{font-family: 'DejaVu Sans', sans-serif}"),
        (rb">\s+<", b">\n<"),
    ):
        svg = re.sub(old, new, svg)
    return re.sub(rb"<[^>]*>", shorter, svg)


def legend_below(figure: Any, handles: Mapping[str, Any], columns: int = 2) -> None:
    """Name what is drawn, below all axes."""
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8
        )


def plain_log(axis: Any, which: str, values: Sequence[float]) -> None:
    """Make an axis, "x" or "y", logarithmic, with ticks at plain numbers around ``values``."""
    low, high = min(values), max(values)
    if high / low < 1.5:  # a range that a linear axis shows as well
        axis.ticklabel_format(axis=which, style="plain", useOffset=False)
        return
    steps = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 12) for step in steps]
    low, high = low / 1.3, high * 1.3
    axis.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set(**{f"{which}ticks": [tick for tick in ticks if low <= tick <= high]})
    getattr(axis, f"{which}axis").set_major_formatter(lambda value, _: f"{value:,.12g}")
    axis.minorticks_off()


def error_bar(
    value: float, interval: Sequence[float] | None, scale: int = 1
) -> tuple[float, float, float]:
    """Return a scaled value and what its interval reaches below and above it."""
    low, high = interval or (value, value)
    # A percentile interval need not hold the value, and an error bar cannot be negative.
    return scale * value, max(0.0, scale * (value - low)), max(0.0, scale * (high - value))
