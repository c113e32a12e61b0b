"""Rules that judge by scores: of two systems, of several, or of a curve."""

from typing import Any, Literal

from espnet_ext.results.claims.base import Compared, Effects
from espnet_ext.results.claims.evidence import GridBest, GridCurve, Pair
from espnet_ext.results.claims.unusable import doubt_of_texts
from espnet_ext.results.claims.verdicts import (
    BY_DIRECTION,
    DOES_NOT,
    HOLDS,
    INCONCLUSIVE,
    BaseClaim,
    Bounds,
    Finding,
    note_worse,
    too_few,
    with_note,
)
from espnet_ext.results.claims.whole import WholeOrRun, WholePair
from espnet_ext.results.store import Results
from espnet_ext.validation import Items, Number


class Scored(BaseClaim):
    """A claim about what trainings made, which must not have failed.

    Evidence may have another ``effect``, and be ``untuned`` alone.
    """

    effect: Effects | None = None
    untuned: bool = False

    def doubt(self, item: Any, results: Results) -> str:
        """Why systems are no evidence, though their trainings did not fail; empty if they are."""
        return item.doubt_of_all(results) or doubt_of_texts(item, results)

    def power(
        self,
        item: Any,
        metric: str,
        interval: tuple[float, float] | None,
        otherwise: float | None = None,
    ) -> str:
        """Return a note where data are few for the published effect, or else ``otherwise``."""
        effects = getattr(item, "effect", None) or self.effect or {}
        return too_few(interval, effects.get(metric, otherwise), metric)


class Better(Scored):
    """Holds if the system is better than the other, does not hold if it is worse.

    With a claimed ``gain`` it does not hold either if the interval of the gain stays below that.
    """

    rule: Literal["better"]
    gain: Number | None = None
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        pair, interval = found.comparison, found.comparison.gain_interval
        below = self.gain is not None and interval is not None and interval[1] < self.gain
        verdict = DOES_NOT if below else BY_DIRECTION[pair.direction]
        note = self.power(item, pair.metric, pair.widest, self.gain)
        return note_worse(with_note(found.text(), note, verdict), verdict, pair)


class Within(Bounds, Scored):
    """Holds if the whole interval of the gain lies in the range, does not hold if none of it.

    Where the evidence names a ``light`` system, the other must be better than that: to be as good
    as a larger model means something only if that gains by its size.
    """

    rule: Literal["within"]
    evidence: Items[Pair]

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        pair, verdict = found.comparison, self._verdict(found.comparison.gain_interval)
        margins = [abs(end) for end in (self.low, self.high) if end]
        note = self.power(item, pair.metric, pair.widest, min(margins, default=None))
        text = with_note(found.text(), note, verdict)
        light = getattr(item, "light", None)
        if light is not None:
            larger = item.model_copy(update={"system": item.than, "than": light, "light": None})
            if larger.compared(results).comparison.direction <= 0:
                text += f"; {item.than} is no better than {light}"
                return note_worse(text, INCONCLUSIVE, pair)
        return note_worse(text, verdict, pair)

    def _verdict(self, interval: tuple[float, float] | None) -> str:
        if interval is None:
            return INCONCLUSIVE
        if all(map(self.holds, interval)):
            return HOLDS
        below = self.low is not None and interval[1] < self.low
        above = self.high is not None and interval[0] > self.high
        return DOES_NOT if below or above else INCONCLUSIVE


class Kept(Scored):
    """Holds if the system's score minus the share ``low`` of the other's has a positive interval.

    Does not hold if that interval is negative. Of error rates, the share is of what is right. Of
    recognisers and translators the other's measured score is taken as exact. Where the evidence
    names a ``trivial`` system, the other must be better than that. The published effect is what
    may be lost.
    """

    rule: Literal["kept"]
    low: Number
    evidence: Items[WholeOrRun]

    def judge(self, item: Any, results: Results) -> Finding:
        whole: Compared = item.compared(results)
        found: Compared = item.compared(results, self.low)
        pair, interval = found.comparison, found.comparison.gain_interval
        share = whole.right(whole.of) / whole.right(whole.than)
        text = f"{whole.scores('of')}, {share:.0%}"
        text += " of what is right" * (pair.kind.direction < 0)
        if interval is None:
            return f"{text} (too few to test)", INCONCLUSIVE
        (low, high), kind = interval, pair.kind
        gain = f"{kind.number(pair.gain, '+')} ({kind.differences(interval)})"
        text += f"; to {self.low:.0%} of it {gain}"
        lost = (1 - self.low) * whole.right(whole.than)
        if isinstance(item, WholePair) and (doubt := item.doubt(results)):
            return text + doubt, INCONCLUSIVE
        verdict = HOLDS if low >= 0 else DOES_NOT if high < 0 else INCONCLUSIVE
        return with_note(text, self.power(item, pair.metric, pair.widest, lost), verdict), verdict


class Question(Scored):
    """A question that the paper leaves open: names the better of the two, if one is."""

    rule: Literal["question"]
    evidence: Items[Pair]

    def doubt(self, item: Any, results: Results) -> str:
        """Which of two is better can be said of systems that hardly work, too."""
        return item.doubt_of_all(results)

    def judge(self, item: Any, results: Results) -> Finding:
        found: Compared = item.compared(results)
        pair = found.comparison
        winner = {1: item.winner, -1: item.than}.get(pair.direction)
        verdict = INCONCLUSIVE if winner is None else f"{winner} is better"
        note = self.power(item, pair.metric, pair.widest)
        return with_note(found.text(), note, verdict), verdict


class Best(Scored):
    """Holds if the system is better than each of the others, does not hold if one is better.

    Any of the others may be the better one by chance, so their p is multiplied by their number.
    """

    rule: Literal["best"]
    evidence: Items[GridBest]

    def judge(self, item: GridBest, results: Results) -> Finding:
        found = [pair.compared(results) for pair in item.pairs()]
        others = zip(item.among, found, strict=True)
        pairs = [pair.comparison for pair in found]
        kind = pairs[0].kind
        text = f"{item.system} {kind.number(found[0].of)}; "
        text += ", ".join(f"{name} {kind.number(pair.than)}" for name, pair in others)
        if all(pair.direction > 0 for pair in pairs):
            return text, HOLDS
        beaten = any(pair.verdict(tests=len(pairs)) == "worse" for pair in pairs)
        verdict = DOES_NOT if beaten else INCONCLUSIVE
        notes = (self.power(item, pair.metric, pair.widest) for pair in pairs)
        return with_note(text, next(filter(None, notes), ""), verdict), verdict


class TrendClaim(Scored):
    """Holds if the systems in their order rise (degree 1) or bend upwards (degree 2).

    The straight or the quadratic part of each unit's curve over equal steps is tested against 0;
    a published ``effect`` is of that part.
    """

    rule: Literal["trend"]
    degree: int = 1
    evidence: Items[GridCurve]

    def judge(self, item: GridCurve, results: Results) -> Finding:
        found = item.trend(results, self.degree)
        verdict = BY_DIRECTION[found.direction]
        note = self.power(item, "weighted_f1", found.interval)
        return with_note(found.text, note, verdict), verdict
