"""Evidence of any kind: a result by its name, and what it says about two systems."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.comparison import Comparison, MetricKey, p_value
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.store import Results
from espnet_ext.validation import Number, Strict, Text

# Published sizes of an effect by metric, in its unit: error rates are fractions.
Effects = Annotated[dict[MetricKey, Number], Field(min_length=1)]


@dataclass(frozen=True)
class Compared:
    """Two scores and their comparison; ``unit`` is the metric and what it is over."""

    of: float
    than: float
    comparison: Comparison
    unit: str

    def text(self) -> str:
        """One line for a table."""
        kind = self.comparison.kind
        difference = kind.number(self.of - self.than, "+")
        interval = self.comparison.gain_interval
        gain = None if interval is None else kind.differences(interval)
        test = gain_text(gain, self.comparison.p)
        return f"{self.scores('against')}: {difference} {test}"

    def scores(self, word: str) -> str:
        """Both scores, with a word between them, and their unit."""
        kind = self.comparison.kind
        words = (kind.number(self.of), word, kind.number(self.than), kind.unit, self.unit)
        return " ".join(filter(None, words))

    def right(self, value: float) -> float:
        """What a score has right: of error rates, what they leave."""
        return value if self.comparison.kind.direction > 0 else 1 - value

    def at_share(self, share: float) -> "Compared":
        """Compare with a share of what the other has right, which is taken as exact."""
        if share == 1:
            return self
        found = self.comparison
        lost = found.kind.direction * (1 - share) * self.right(self.than)
        ends = {
            name: None if interval is None else (interval[0] + lost, interval[1] + lost)
            for name, interval in (("interval", found.interval), ("by_speaker", found.by_speaker))
        }
        moved = {"difference": found.difference + lost, "p": None, **ends}
        return Compared(self.of, self.than - lost, found.model_copy(update=moved), self.unit)


def gain_text(gain: str | None, p: float | None) -> str:
    """The gain, an interval as it is printed, and p of a comparison."""
    if p is None:
        return "(too few to test)"
    return f"(p {p_value(p)})" if gain is None else f"(gain {gain}, p {p_value(p)})"


class Evidence(Strict):
    """A result by its kind and name, as the first field of a kind states, and systems in it.

    Attributes:
        untuned: a system was trained at the learning rate that suits another.
        missing: what it would take to publish the result; needed until it is.
    """

    untuned: bool = False
    missing: Text | None = None

    def doubt_of_all(self, results: Results) -> str:
        """Why these systems are no evidence, whatever differs between them; empty if they are."""
        return ""

    @property
    def kind(self) -> str:
        """grid, run, time, similarity or pruning."""
        return next(name for name in type(self).model_fields if name not in Evidence.model_fields)

    @property
    def result(self) -> str:
        """Name of the result."""
        return str(getattr(self, self.kind))

    def records(self, results: Results) -> Mapping[str, Any]:
        """The results of its kind, by name."""
        return getattr(results, {"grid": "grids", "run": "runs"}.get(self.kind, self.kind))

    def record(self, results: Results) -> Any:
        """The result that is named."""
        return self.records(results)[self.result]

    def is_published(self, results: Results) -> bool:
        """False if the result has not been published."""
        return self.result in self.records(results)

    def title(self) -> str:
        """Name the systems that are compared, for a table."""
        named = {key: value for key, value in self if value is not None}
        words = [named.get(key) for key in ("system", "measure", "order", "set", "method")]
        words += [", ".join(named.get("systems", ()))]
        if "among" in named:
            words.append(f"among {', '.join(named['among'])}")
        if "than" in named:
            words.append(f"against {named['than']}")
        start = self.result if self.kind == "run" else f"{self.kind} {self.result}:"
        return " ".join([start, *filter(None, words)])

    def failures(self, results: Results) -> list[str]:
        """Lines on trainings whose systems decide nothing."""
        return []

    def numbers(self, results: Results, system: str | None = None) -> Mapping[str, Any] | None:
        """The record of a system, or of the one that is named first; None: not published."""
        raise NotImplementedError  # of similarity and pruning

    def field(self, results: Results, name: str, system: str | None = None) -> Any:
        """A number (dotted) of a system; "not measured" where its record says so.

        Raises:
            UserError: there is no such number.
        """
        value: Any = self.numbers(results, system)
        for key in () if value is None else name.split("."):
            if value == NOT_MEASURED:
                break
            if not isinstance(value, Mapping) or key not in value:
                known = list(value) if isinstance(value, Mapping) else []
                raise UserError(f"{system or self.title()} has no field {nearest(key, known)}")
            value = value[key]
        if value is None or value == NOT_MEASURED:
            return NOT_MEASURED
        if not isinstance(value, int | float):
            raise UserError(f"{name} of {system or self.title()} is no number")
        return value
