"""Names of points, placed where they hide nothing."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

_GAPS = (6, 20, 40, 70, 110)  # pixels between a point and its name at a side
_ROWS = 30  # heights of a name that it may stand above or below its point
_MARKER = 4  # half a marker, pixels
_BESIDE = 16  # pixels to a name that needs no line

type Box = tuple[float, float, float, float]  # left, bottom, right, top; pixels
type Place = tuple[float, float]


def label_points(axis: Any, points: Iterable[tuple[float, float, str]], size: float = 7.5) -> None:
    """Write names near points where they cover neither each other, nor a point, nor a bar.

    A name that is not next to its point has a line to it.

    Args:
        axis: with its place and limits set; what is drawn later must not change them.
        points: (x, y, name) in data coordinates; those without a name need their place too.
        size: of the font.
    """
    points = list(points)
    places = [tuple(axis.transData.transform((x, y))) for x, y, _ in points]
    solid = [_around(place, _MARKER) for place in places]  # what neither name nor line may cross
    thin = list(_bars(axis))  # what a line may cross
    for (x, y, name), place in zip(points, places, strict=True):
        if name:
            box = _choose(place, _candidates(place, *_extent(axis, name, size)), axis, solid, thin)
            solid.append(box)
            thin += _line(place, box)
            _write(axis, (x, y), name, size, place, box)


def _bars(axis: Any) -> Iterator[Box]:
    """The intervals that are drawn."""
    for bars in axis.collections:
        for segment in bars.get_segments():
            (left, bottom), (right, top) = axis.transData.transform(segment)
            yield left - 2, bottom - 2, right + 2, top + 2


def _extent(axis: Any, name: str, size: float) -> Place:
    """Width and height of a name in pixels, some more than measured: a viewer may differ."""
    text = axis.text(0, 0, name, fontsize=size)
    extent = text.get_window_extent()
    text.remove()
    return 1.05 * extent.width, extent.height


def _candidates(place: Place, width: float, height: float) -> list[Box]:
    """Boxes at both sides of a point, above it and below it, nearest first."""
    x, y = place
    starts = [x + gap for gap in _GAPS] + [x - gap - width for gap in _GAPS] + [x - width / 2]
    bottoms = [y + (row - 0.5) * height for row in range(-_ROWS, _ROWS + 1)]
    boxes = [(left, low, left + width, low + height) for low in bottoms for left in starts]
    return sorted(boxes, key=lambda box: round(math.dist(place, _nearest(place, box))))


def _choose(
    place: Place, boxes: Sequence[Box], axis: Any, solid: Sequence[Box], thin: Sequence[Box]
) -> Box:
    """The first box inside the axes that covers nothing and whose line crosses nothing solid.

    If there is none, the first that covers nothing; else the first inside the axes.
    """
    left, bottom, right, top = axis.bbox.extents
    inside = [b for b in boxes if left < b[0] and b[2] < right and bottom < b[1] and b[3] < top]

    def is_free(box: Box) -> bool:
        return not _covers(box, solid) and not _covers(box, thin)

    def is_clear(box: Box) -> bool:
        return is_free(box) and not any(_covers(step, solid) for step in _line(place, box))

    return next(chain(filter(is_clear, inside), filter(is_free, inside), inside, boxes))


def _line(place: Place, box: Box) -> list[Box]:
    """Steps of the line from a point to its name; none where the name is next to it."""
    (x, y), end = place, _nearest(place, box)
    length = math.dist(place, end)
    if length <= _BESIDE:
        return []
    shares = [pixels / length for pixels in range(2 * _MARKER, int(length) - 2, 3)]
    return [_around((x + s * (end[0] - x), y + s * (end[1] - y)), 1) for s in shares]


def _write(axis: Any, point: Place, name: str, size: float, place: Place, box: Box) -> None:
    """Write a name into its box, with a line to its point if it is not next to it."""
    x, y = _nearest(place, box)
    across, up = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
    align = "left" if across == 0 else "right" if across == 1 else "center"
    offset = (x - place[0], (box[1] + box[3]) / 2 - place[1])
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    text = axis.annotate(
        name,
        point,
        xytext=[72 / axis.figure.dpi * pixels for pixels in offset],
        textcoords="offset points",
        horizontalalignment=align,
        verticalalignment="center",
        fontsize=size,
        arrowprops=line | {"relpos": (across, up)} if _line(place, box) else None,
    )
    text.set_in_layout(False)  # inside the axes, which must not move


def _nearest(place: Place, box: Box) -> Place:
    """The point of a box that is nearest to a place."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])


def _around(place: Place, margin: float) -> Box:
    return place[0] - margin, place[1] - margin, place[0] + margin, place[1] + margin


def _covers(box: Box, others: Iterable[Box]) -> bool:
    """Whether a box covers a part of any other."""
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
