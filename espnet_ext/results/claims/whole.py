"""Evidence about a stack of layers: its blocks, and what is left of the whole without some.

Being near the whole says something only if the whole is better than a trivial system.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.claims.base import Evidence
from espnet_ext.results.claims.evidence import (
    GridPair,
    OfGrid,
    RunPair,
    against_trivial,
    find_row,
    one_of,
    trivial_row,
)
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.stacks import Order, Pruning
from espnet_ext.results.store import Results
from espnet_ext.validation import Number, Text


def _number_or_system(value: Any) -> str:
    return "[system]" if isinstance(value, Mapping) else "[number]"


# A score, or a system of a grid that was scored on the same set.
Trivial = Annotated[
    Annotated[Number, Tag("[number]")] | Annotated[OfGrid, Tag("[system]")],
    Discriminator(_number_or_system),
]


def _beats(metric: str, interval: tuple[float, float] | None, value: float) -> bool:
    """True if an interval holds nothing but what is better than a value."""
    sign = METRICS[metric].direction
    return interval is not None and min(sign * end for end in interval) > sign * value


def _doubt(whole: str, score: float, other: str, value: float) -> str:
    return f"; {whole} is no better than {other} ({score:.3f} against {value:.3f})"


class WholePair(GridPair):
    """What is left of a stack against the whole of it."""

    trivial: Trivial | None = None  # type: ignore[assignment]

    def doubt_of_all(self, results: Results) -> str:
        return ""  # the whole alone must beat the trivial system

    def doubt(self, results: Results) -> str:
        """Why being near the whole says nothing; empty if it beats the trivial system.

        A system is compared with the whole unit by unit; a number with the interval of the whole.

        Raises:
            UserError: the trivial system is not there, or was scored on other units; or these are
                no classifiers.
        """
        if self.trivial is None:
            return ""
        if isinstance(self.trivial, OfGrid):
            found = against_trivial(self, self.than, self.trivial, results)
            name = found.comparison.baseline
            better = found.comparison.direction > 0
            return "" if better else _doubt(self.than, found.of, name, found.than)
        if self.record(results).classes is None:
            raise UserError(f"trivial is of classifiers, which grid {self.grid} has none of")
        whole = find_row(self, results, self.than).scores["weighted_f1"]
        better = _beats("weighted_f1", whole.interval, self.trivial)
        return "" if better else _doubt(self.than, whole.value, "trivial", self.trivial)


class OfSimilarity(Evidence):
    """A matrix of results/<dataset>_<task>/similarity/<name>.json."""

    similarity: Text
    measure: Text


class OfPruning(Evidence):
    """A curve of results/<dataset>_<task>/pruning/<name>.json."""

    pruning: Text
    order: Text
    trivial: Trivial | None = None

    def curve(self, results: Results) -> Order:
        """The order in which layers were removed.

        Raises:
            UserError: there is no such order.
        """
        orders = {order.order: order for order in self.record(results).orders}
        if self.order not in orders:
            raise UserError(f"no order {nearest(self.order, orders)}")
        return orders[self.order]

    def doubt(self, results: Results) -> str:
        """Why what can go says nothing; empty if the whole beats every trivial system.

        Raises:
            UserError: the trivial system is not there, or has no such metric.
        """
        record = self.record(results)
        points = self.curve(results).points
        interval = next((point.interval for point in points if point.removed == 0), None)
        for name, value in self._trivial(record, results):
            if not _beats(record.metric, interval, value):
                return _doubt("the whole", record.full, name, value)
        return ""

    def _trivial(self, record: Pruning, results: Results) -> Iterator[tuple[str, float]]:
        if record.majority is not None:
            yield "the commonest class", record.majority
        if isinstance(self.trivial, OfGrid):
            row = trivial_row(self.trivial, results)
            if record.metric not in row.scores:
                raise UserError(f"{row.system} has no {nearest(record.metric, row.scores)}")
            yield f"{row.system} of {self.trivial.grid}", row.scores[record.metric].value
        elif self.trivial is not None:
            yield "trivial", self.trivial


WholeOrRun = Annotated[
    Annotated[WholePair, Tag("[grid]")] | Annotated[RunPair, Tag("[run]")],
    one_of("grid", "run"),
]
