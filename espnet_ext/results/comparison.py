"""A system against a baseline on one metric: the difference, its test and the verdict."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from espnet_ext.errors import nearest
from espnet_ext.results.metrics import METRICS, Metric
from espnet_ext.validation import Count, Interval, Number, Strict, Text

FEW_SPEAKERS = 10  # up to here the interval by speaker decides too
SIGNIFICANT = 0.05


def significant(p: float | None) -> bool:
    """True if a test found a difference; False also where there was nothing to test."""
    return p is not None and p < SIGNIFICANT


Verdict = Literal["better", "worse", "equal", "inconclusive"]


def _known(key: str) -> str:
    if key not in METRICS:
        raise ValueError(f"no metric {nearest(key, METRICS)}")
    return key


MetricKey = Annotated[str, AfterValidator(_known)]


class Mapsswe(Strict):
    """NIST's matched-pairs test of words (``score.significance.mapsswe``)."""

    segments: Count
    z: Number | None  # None, as p: nothing to test
    p: Number | None


class Comparison(Strict):
    """A system against a baseline on one metric.

    Attributes:
        metric: key of METRICS.
        baseline: name of the run or system compared with.
        difference: system minus baseline.
        interval: 95 % interval of the difference; None: nothing to draw from.
        p: two-sided; None: nothing to test.
        by_speaker: interval over drawn speakers; None: one speaker, or none known.
        speakers: how many there are.
        mapsswe: of words.
        by_seed: differences by seed; None: one training.
    """

    metric: MetricKey
    baseline: Text
    difference: Number
    interval: Interval | None
    p: Number | None
    by_speaker: Interval | None = None
    speakers: Count | None = None
    mapsswe: Mapsswe | None = None
    by_seed: dict[str, Number] | None = None

    @property
    def kind(self) -> Metric:
        """The metric."""
        return METRICS[self.metric]

    @property
    def gain(self) -> float:
        """The difference, positive where the system is better."""
        return self.kind.direction * self.difference

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """The interval of the gain: by speaker where speakers are few."""
        ends = self._few_speakers or self.interval
        if ends is None:
            return None
        low, high = sorted(self.kind.direction * end for end in ends)
        return low, high

    @property
    def widest(self) -> tuple[float, float] | None:
        """The wider of the intervals by utterance and by speaker: what the data leave open."""
        ends = [interval for interval in (self.interval, self.by_speaker) if interval is not None]
        return max(ends, key=lambda interval: interval[1] - interval[0], default=None)

    @property
    def _few_speakers(self) -> tuple[float, float] | None:
        """The interval by speaker where speakers are so few that it decides too."""
        few = self.speakers is not None and self.speakers <= FEW_SPEAKERS
        return self.by_speaker if few else None

    def verdict(self, tests: int = 1) -> Verdict:
        """Judge the system against the baseline, as one of so many ``tests`` (Bonferroni).

        ``equal`` is the same on every draw. ``better`` and ``worse`` need p < 0.05 and, with at
        most 10 speakers, an interval by speaker without 0, since utterances of one speaker are
        not independent. Of a single speaker, or of votes by speaker, there is no such interval.
        Everything else is ``inconclusive``.
        """
        if self.difference == 0 and self.interval == (0, 0):
            return "equal"
        if self.reason(tests) or self.gain == 0:
            return "inconclusive"
        return "better" if self.gain > 0 else "worse"

    def reason(self, tests: int = 1) -> str:
        """Why neither is better, in words; empty if one is."""
        if self.p is None:
            return "too few to test"
        if not significant(self.p * tests):
            return f"p is not below {SIGNIFICANT}"
        ends = self._few_speakers
        if ends is not None and ends[0] <= 0 <= ends[1]:
            return "the interval by speaker holds 0"
        return ""

    @property
    def direction(self) -> int:
        """1 where the system is better, -1 where it is worse, else 0."""
        return {"better": 1, "worse": -1}.get(self.verdict(), 0)

    def sentence(self) -> str:
        """Say how far the system is from the baseline, and whether that is certain."""
        verdict, points = self.verdict(), " points" if self.kind.unit == "%" else ""
        meaning = {"equal": "equal to", "inconclusive": "inconclusive against"}
        found = [f"{self.kind.number(self.difference, '+')}{points}"]
        if details := self._details("95 % interval "):
            found.append(", ".join(details))
        text = f"{self.kind.name} {meaning.get(verdict, f'{verdict} than')} {self.baseline}"
        text += f" ({'; '.join(found)})"
        return f"{text}: {self.reason()}" if verdict == "inconclusive" else text

    def cell(self) -> str:
        """The difference, its test and the verdict, for a table."""
        untested = self.p is None and self.verdict() != "equal"
        details = [*self._details(), self.reason() if untested else self.verdict()]
        return f"{self.kind.number(self.difference, '+')} ({', '.join(details)})"

    def _details(self, title: str = "") -> list[str]:
        """The intervals and what the tests say."""
        found = []
        if self.interval is not None:
            found.append(f"{title}{self.kind.differences(self.interval)}")
        if self._few_speakers is not None:
            found.append(f"by speaker {self.kind.differences(self._few_speakers)}")
        if self.p is not None:
            found.append(f"p {p_value(self.p)}")
        if self.mapsswe is not None and self.mapsswe.p is not None:
            found.append(f"MAPSSWE p {p_value(self.mapsswe.p)}")
        return found


def p_value(p: float) -> str:
    """Return a p value to three places."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
