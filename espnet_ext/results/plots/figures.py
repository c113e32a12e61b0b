"""Figures: their layout, axes, labels and files."""

import io
import os
import re
from collections.abc import Iterable, Sequence
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
_CHARACTER = (0.55, 1.25)  # width and height of a character, in font sizes


def new_figure(panels: int, width: float = 4.8, height: float = 3.6) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, at most three in a row; sizes of a panel in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # drawn without pyplot: no display, no global state

    columns = min(panels, 3)
    rows = -(-panels // columns)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    return figure, axes


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure; a file that would not change is not written."""
    import matplotlib

    drawn = io.BytesIO()
    kind = Path(path).suffix[1:]
    with matplotlib.rc_context(_SETTINGS):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(drawn, format=kind, metadata=metadata, dpi=_DPI)
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


def plain_log(axis: Any, values: Sequence[float], base: float = 10) -> None:
    """Make x logarithmic, with ticks at plain numbers around ``values``."""
    low, high = min(values), max(values)
    axis.set_xscale("log", base=base)
    if high / low < 1.5:  # a range that a linear axis shows as well
        axis.set_xscale("linear")
        return
    steps = (1,) if high / low > 100 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 12) for step in steps]
    axis.set_xlim(low / 1.3, high * 1.3)
    axis.set_xticks([tick for tick in ticks if low / 1.3 <= tick <= high * 1.3])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.minorticks_off()


def label_points(axis: Any, points: Iterable[tuple[float, float, str]], size: float = 6.5) -> None:
    """Write names next to points where they cover neither each other nor a point.

    Args:
        axis: with its limits set; what is drawn later must not change them.
        points: (x, y, name) in data coordinates.
        size: of the font.
    """
    axis.figure.draw_without_rendering()
    points = list(points)  # those without a name need their place too
    places = [tuple(axis.transData.transform((x, y))) for x, y, _ in points]
    inside = axis.get_window_extent()
    scale = size * axis.figure.dpi / 72
    occupied = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y, name), (left, middle) in zip(points, places, strict=True):
        if not name:
            continue
        width, height = _CHARACTER[0] * len(name) * scale, _CHARACTER[1] * scale
        boxes = []
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5):
            bottom = middle + step * height - height / 2
            for start in (left + 8, left - 8 - width):
                boxes.append((start, bottom, start + width, bottom + height))
        fitting = [b for b in boxes if inside.x0 <= b[0] and b[2] <= inside.x1]
        free = [b for b in fitting if not any(_overlap(b, other) for other in occupied)]
        box = (free or fitting or boxes)[0]
        occupied.append(box)
        far = abs(box[1] + height / 2 - middle) > height
        points_a_pixel = 72 / axis.figure.dpi
        axis.annotate(
            name,
            (x, y),
            xytext=((box[0] - left) * points_a_pixel, (box[1] - middle) * points_a_pixel),
            textcoords="offset points",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5} if far else None,
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def error_bar(
    value: float, interval: Sequence[float] | None, scale: int = 1
) -> tuple[float, float, float]:
    """Return a scaled value and what its interval reaches below and above it."""
    low, high = interval or (value, value)
    # A percentile interval need not hold the value, and an error bar cannot be negative.
    return scale * value, max(0.0, scale * (value - low)), max(0.0, scale * (high - value))
