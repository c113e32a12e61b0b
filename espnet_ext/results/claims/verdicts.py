"""Verdicts, the base of all rules, and the notes on what was measured."""

from abc import abstractmethod
from typing import Any

from espnet_ext.results.comparison import Comparison
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.store import Results
from espnet_ext.validation import Number, Strict, Text

HOLDS = "holds"
DOES_NOT = "does not hold"
INCONCLUSIVE = "inconclusive"
FAILED = "training failed"  # of a system that decides nothing, which is no evidence
BY_DIRECTION = {1: HOLDS, -1: DOES_NOT, 0: INCONCLUSIVE}
WORSE = " (worse)"  # after a verdict: the system is significantly worse than the other
UNTUNED = "; untuned: a system has another's learning rate"

type Finding = tuple[str, str]  # what was measured, verdict


class BaseClaim(Strict):
    """The keys that all claims have."""

    claim: Text
    where: Text  # in the paper
    published: Text

    @abstractmethod
    def judge(self, item: Any, results: Results) -> Finding:
        """Judge by one item of evidence that has been published."""

    def options(self) -> dict[str, Any]:
        """The rule and its keys, as far as they are given."""
        known = {*BaseClaim.model_fields, "evidence", "untuned"}
        return {key: v for key, v in self if key not in known and v is not None}


class Bounds(BaseClaim):
    """A range; an end that is left out is open."""

    low: Number | None = None
    high: Number | None = None

    def holds(self, value: float) -> bool:
        """True if a value lies in the range."""
        low, high = self.low, self.high
        return (low is None or value >= low) and (high is None or value <= high)


def not_measured(missing: str) -> Finding:
    """Nothing was measured; ``missing`` is what it would take."""
    return f"{NOT_MEASURED}: {missing}", NOT_MEASURED


def too_few(interval: tuple[float, float] | None, effect: float | None, metric: str) -> str:
    """Return a note where an interval is wider than the effect in question, of a metric.

    Data that leave so much open are too few for it.
    """
    if interval is None or effect is None or interval[1] - interval[0] <= effect:
        return ""
    scale = METRICS[metric].scale
    return f"; interval wider than the effect in question ({scale * effect:.3g})"


def with_note(text: str, note: str, verdict: str) -> str:
    """Add a note on few data to the text of a verdict that is open for them."""
    return text + note if verdict == INCONCLUSIVE else text


def note_worse(text: str, verdict: str, found: Comparison) -> Finding:
    """Add to text and verdict that the system is significantly worse, if it is."""
    if found.direction >= 0:
        return text, verdict
    return f"{text}; significantly worse", verdict + WORSE
