"""Claims by their rules: each computes its verdict from committed results.

A rule is a class: its fields are the keys of the claim, its docstring says when it holds.
"""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.claims.base import Compared
from espnet_ext.results.claims.evidence import (
    AnyPair,
    GridBest,
    GridCurve,
    GridPair,
    OfPruning,
    OfSimilarity,
    Pair,
    RunAmong,
    Single,
)
from espnet_ext.results.comparison import SIGNIFICANT
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.stacks import MEASURES
from espnet_ext.results.store import Results
from espnet_ext.validation import Items, Number, Strict, Text

HOLDS = "holds"
DOES_NOT = "does not hold"
INCONCLUSIVE = "inconclusive"
FAILED = "training failed"  # of a system that decides nothing, which is no evidence
_BY_DIRECTION = {1: HOLDS, -1: DOES_NOT, 0: INCONCLUSIVE}
_UNKNOWN = (NOT_MEASURED, NOT_MEASURED)

type Finding = tuple[str, str]  # what was measured, verdict


class BaseClaim(Strict):
    """The keys that all claims have."""

    claim: Text
    where: Text  # in the paper
    published: Text

    by_score: ClassVar[bool] = False  # judged by scores, for which trainings must not have failed

    @abstractmethod
    def judge(self, item: Any, results: Results) -> Finding:
        """Judge by one item of evidence that has been published."""

    def options(self) -> dict[str, Any]:
        """The rule and its keys, as far as they are given."""
        known = {*BaseClaim.model_fields, "evidence"}
        return {key: v for key, v in self if key not in known and v is not None}


class Better(BaseClaim):
    """Holds if the system is better than the other, does not hold if it is worse.

    With a claimed ``gain`` it does not hold either if the interval of the gain stays below that. An
    interval that reaches further than the gain to both sides says so: the data are too few for it.
    """

    rule: Literal["better"]
    by_score = True
    gain: Number | None = None
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        interval, text = found.comparison.gain_interval, found.text()
        if self.gain is None or interval is None:
            return text, _BY_DIRECTION[found.comparison.direction]
        if interval[1] < self.gain:
            return text, DOES_NOT
        if interval[1] - interval[0] > 2 * self.gain:
            text += "; too few data for such a gain"
        return text, _BY_DIRECTION[found.comparison.direction]


class Bounds(BaseClaim):
    """A range; an end that is left out is open."""

    low: Number | None = None
    high: Number | None = None

    def holds(self, value: float) -> bool:
        """True if a value lies in the range."""
        low, high = self.low, self.high
        return (low is None or value >= low) and (high is None or value <= high)


class Within(Bounds):
    """Holds if the whole interval of the gain lies in the range, does not hold if none of it.

    Where the evidence names a ``light`` system, the other must be better than that: to be as good
    as a larger model means something only if that gains by its size.
    """

    rule: Literal["within"]
    by_score = True
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        interval = found.comparison.gain_interval
        light = getattr(item, "light", None)
        if light is not None:
            pair = item.model_copy(update={"system": item.than, "than": light, "light": None})
            if pair.compared(results).comparison.direction <= 0:
                return f"{found.text()}; {item.than} is no better than {light}", INCONCLUSIVE
        text = found.text() + "; significantly worse" * (found.comparison.direction < 0)
        if interval is None:
            return text, INCONCLUSIVE
        if all(map(self.holds, interval)):
            return text, HOLDS
        below = self.low is not None and interval[1] < self.low
        above = self.high is not None and interval[0] > self.high
        return text, DOES_NOT if below or above else INCONCLUSIVE


class Kept(BaseClaim):
    """Holds if the system's score minus the share ``low`` of the other's has a positive interval.

    Does not hold if that interval is negative.
    """

    rule: Literal["kept"]
    by_score = True
    low: Number
    evidence: Items[GridPair]

    def judge(self, item: GridPair, results: Results) -> Finding:
        found = item.compared(results, self.low)
        whole = found.than / self.low
        text = f"{found.of:.3f} of {whole:.3f} {found.unit}, {found.of / whole:.0%}"
        interval = found.comparison.gain_interval
        if interval is None:
            return f"{text} (too few to test)", INCONCLUSIVE
        low, high = interval
        text += f"; to {self.low:.0%} of it {found.comparison.gain:+.3f}"
        text += f" ({low:+.3f} to {high:+.3f})"
        return text, HOLDS if low >= 0 else DOES_NOT if high < 0 else INCONCLUSIVE


class Question(BaseClaim):
    """A question that the paper leaves open: names the better of the two, if one is."""

    rule: Literal["question"]
    by_score = True
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        winner = {1: item.winner, -1: item.than}.get(found.comparison.direction)
        return found.text(), INCONCLUSIVE if winner is None else f"{winner} is better"


class Best(BaseClaim):
    """Holds if the system is better than each of the others, does not hold if one is better.

    Any of the others may be the better one by chance, so their p is multiplied by their number.
    """

    rule: Literal["best"]
    by_score = True
    evidence: Items[GridBest]

    def judge(self, item: GridBest, results: Results) -> Finding:
        found = [pair.compared(results) for pair in item.pairs()]
        others = zip(item.among, found, strict=True)
        text = f"{item.system} {found[0].of:.3f}; "
        text += ", ".join(f"{name} {pair.than:.3f}" for name, pair in others)
        pairs = [pair.comparison for pair in found]
        if all(pair.direction > 0 for pair in pairs):
            return text, HOLDS
        beaten = any(
            pair.gain < 0 and pair.p is not None and pair.p * len(pairs) < SIGNIFICANT
            for pair in pairs
        )
        return text, DOES_NOT if beaten else INCONCLUSIVE


class TrendClaim(BaseClaim):
    """Holds if the systems in their order rise (degree 1) or bend upwards (degree 2).

    The straight or the quadratic part of each unit's curve over equal steps is tested against 0.
    """

    rule: Literal["trend"]
    by_score = True
    degree: int = 1
    evidence: Items[GridCurve]

    def judge(self, item: GridCurve, results: Results) -> Finding:
        text, direction = item.trend(results, self.degree)
        return text, _BY_DIRECTION[direction]


class Equal(BaseClaim):
    """Holds if every field is the same number in both; exact, since nothing is estimated."""

    rule: Literal["equal"]
    fields: Items[Text]
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        systems = (None, item.than)
        pairs = {key: [item.field(results, key, s) for s in systems] for key in self.fields}
        if any(NOT_MEASURED in pair for pair in pairs.values()):
            return _UNKNOWN
        text = "; ".join(f"{key} {one:,} and {other:,}" for key, (one, other) in pairs.items())
        return text, HOLDS if all(one == other for one, other in pairs.values()) else DOES_NOT


class Ratio(Bounds):
    """Holds if the field over that of the other is in the range; exact."""

    rule: Literal["ratio"]
    field: Text
    evidence: Items[AnyPair]

    def judge(self, item: Any, results: Results) -> Finding:
        one, other = (item.field(results, self.field, name) for name in (None, item.than))
        if NOT_MEASURED in (one, other) or other == 0:
            return _UNKNOWN
        form = ",.1f" if isinstance(one, float) else ","
        text = f"{self.field} {one:{form}} / {other:{form}} = {one / other:.3f}"
        return text, HOLDS if self.holds(one / other) else DOES_NOT


class OfSum(Bounds):
    """Holds if the sum of the field over other runs, over that of the run, is in the range."""

    rule: Literal["of_sum"]
    field: Text
    evidence: Items[RunAmong]

    def judge(self, item: RunAmong, results: Results) -> Finding:
        one = item.field(results, self.field)
        others = [item.field(results, self.field, name) for name in item.among]
        if NOT_MEASURED in (one, *others) or one == 0:
            return _UNKNOWN
        ratio = sum(others) / one
        text = f"{self.field}: {len(others)} together {sum(others):,.0f} / {one:,.0f} = {ratio:.2f}"
        return text, HOLDS if self.holds(ratio) else DOES_NOT


class AtMost(BaseClaim):
    """Holds if the field of one system is no larger than the limit."""

    rule: Literal["at_most"]
    field: Text
    limit: Number
    evidence: Items[Single]

    def judge(self, item: Any, results: Results) -> Finding:
        found = item.field(results, self.field)
        if found == NOT_MEASURED:
            return _UNKNOWN
        return f"{self.field} {found:.3g}", HOLDS if found <= self.limit else DOES_NOT


class BlocksClaim(BaseClaim):
    """Holds if, where the stack is cut, neighbouring layers are the least alike of all.

    Without that the cut is only a place in a smooth change from the first layer to the last. A
    single layer is no block.
    """

    rule: Literal["blocks"]
    evidence: Items[OfSimilarity]

    def judge(self, item: OfSimilarity, results: Results) -> Finding:
        if item.measure not in MEASURES:
            raise UserError(f"unknown measure {nearest(item.measure, MEASURES)}")
        record = item.record(results)
        matrix, cuts = record.matrix(item.measure), record.blocks[item.measure].first_layers
        if cuts is None:
            return f"{len(matrix)} layers are too few to cut", INCONCLUSIVE
        neighbours = {i: matrix[i - 1][i] for i in range(1, len(matrix))}
        across = max(neighbours.pop(cut) for cut in cuts)
        inside = min(neighbours.values())
        ends = [0, *cuts, len(matrix)]
        spans = ", ".join(f"{a}-{b - 1}" for a, b in zip(ends, ends[1:], strict=False))
        text = f"layers {spans}; neighbours across {across:.3f}, others from {inside:.3f}"
        alone = min(b - a for a, b in zip(ends, ends[1:], strict=False)) < 2
        text += "; one block is a single layer" * alone
        return text, HOLDS if across < inside and not alone else DOES_NOT


class Removable(BaseClaim):
    """Holds if at least the share ``low`` of the layers can go at 95 % of the whole's score."""

    rule: Literal["removable"]
    low: Number
    evidence: Items[OfPruning]

    def judge(self, item: OfPruning, results: Results) -> Finding:
        record = item.record(results)
        orders = {order.order: order.removable for order in record.orders}
        if item.order not in orders:
            raise UserError(f"no order {nearest(item.order, orders)}")
        removed, layers = orders[item.order], record.model.layers
        share = removed / layers
        text = f"{removed} of {layers} layers, {share:.0%}"
        return text, HOLDS if share >= self.low else DOES_NOT


Claim = Annotated[
    Better
    | Within
    | Kept
    | Question
    | Best
    | TrendClaim
    | Equal
    | Ratio
    | OfSum
    | AtMost
    | BlocksClaim
    | Removable,
    Field(discriminator="rule"),
]
