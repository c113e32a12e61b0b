"""Claims by their rules: each computes its verdict from committed results.

A rule is a class: its fields are the keys of the claim, its docstring says when it holds. Those
that judge by scores are in ``results.claims.scored``.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.claims.evidence import AnyPair, Pair, RunAmong, Single
from espnet_ext.results.claims.scored import Best, Better, Kept, Question, TrendClaim, Within
from espnet_ext.results.claims.verdicts import (
    DOES_NOT,
    HOLDS,
    INCONCLUSIVE,
    BaseClaim,
    Bounds,
    Finding,
    not_measured,
)
from espnet_ext.results.claims.whole import OfPruning, OfSimilarity
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.stacks import MEASURES
from espnet_ext.results.store import Results
from espnet_ext.validation import Items, Number, Text

LEAST_LAYERS = 6  # of a stack that may have two blocks


def _unknown(field: str) -> Finding:
    return not_measured(f"{field} is not published of all systems")


class Equal(BaseClaim):
    """Holds if every field is the same number in both; exact, since nothing is estimated."""

    rule: Literal["equal"]
    fields: Items[Text]
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        systems = (None, item.than)
        pairs = {key: [item.field(results, key, s) for s in systems] for key in self.fields}
        unknown = [key for key, pair in pairs.items() if NOT_MEASURED in pair]
        if unknown:
            return _unknown(" and ".join(unknown))
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
            return _unknown(self.field)
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
            return _unknown(self.field)
        ratio = sum(others) / one
        text = f"{self.field}: {len(others)} together {sum(others):,.0f} / {one:,.0f} = {ratio:.2f}"
        return text, HOLDS if self.holds(ratio) else DOES_NOT


class AtMost(BaseClaim):
    """Holds if the field of one system is no larger than the limit, whatever its training made."""

    rule: Literal["at_most"]
    field: Text
    limit: Number
    evidence: Items[Single]

    def judge(self, item: Any, results: Results) -> Finding:
        found = item.field(results, self.field)
        if found == NOT_MEASURED:
            return _unknown(self.field)
        return f"{self.field} {found:.3g}", HOLDS if found <= self.limit else DOES_NOT


class BlocksClaim(BaseClaim):
    """Holds if, where the stack is cut, neighbouring layers are the least alike of all.

    Without that the cut is only a place in a smooth change from the first layer to the last. A
    single layer is no block, and of fewer than six layers there are too few neighbours to say.
    """

    rule: Literal["blocks"]
    evidence: Items[OfSimilarity]

    def judge(self, item: OfSimilarity, results: Results) -> Finding:
        if item.measure not in MEASURES:
            raise UserError(f"unknown measure {nearest(item.measure, MEASURES)}")
        record = item.record(results)
        matrix, cuts = record.matrix(item.measure), record.blocks[item.measure].first_layers
        if cuts is None or len(matrix) < LEAST_LAYERS:
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
    """Holds if at least the share ``low`` of the layers can go at 95 % of the whole's score.

    The whole must be better than always naming the commonest class and, where the evidence names
    one, than a ``trivial`` system.
    """

    rule: Literal["removable"]
    low: Number
    evidence: Items[OfPruning]

    def judge(self, item: OfPruning, results: Results) -> Finding:
        removed, layers = item.curve(results).removable, item.record(results).model.layers
        share = removed / layers
        text = f"{removed} of {layers} layers, {share:.0%}"
        if doubt := item.doubt(results):
            return text + doubt, INCONCLUSIVE
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
