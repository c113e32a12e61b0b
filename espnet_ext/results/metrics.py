"""The metrics that scores hold: how they are named and printed, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from espnet_ext.errors import UserError, nearest

ALWAYS = "always the commonest class"  # name of the classifier that learns nothing


@dataclass(frozen=True)
class Metric:
    """A metric of a score file.

    Attributes:
        key: its name in files and claims.
        name: as printed.
        direction: 1 where more is better, -1 where less is.
        scale: factor from files to pages; error rates are fractions in files.
        digits: decimal places on pages.
        unit: of a value; empty if it has none.
    """

    key: str
    name: str
    direction: int = 1
    scale: int = 1
    digits: int = 3
    unit: str = ""

    @property
    def title(self) -> str:
        """Heading of a column or an axis."""
        return f"{self.name} {self.unit}".strip()

    def number(self, value: float, sign: str = "") -> str:
        """A value, or with ``sign="+"`` a difference, as pages print it."""
        return f"{self.scale * value:{sign}.{self.digits}f}"

    def range(self, interval: Sequence[float]) -> str:
        """An interval of values."""
        return "-".join(map(self.number, interval))

    def differences(self, interval: Sequence[float]) -> str:
        """An interval of differences."""
        return " to ".join(self.number(end, "+") for end in interval)


METRICS = {
    metric.key: metric
    for metric in (
        Metric("wer", "WER", direction=-1, scale=100, digits=1, unit="%"),
        Metric("cer", "CER", direction=-1, scale=100, digits=1, unit="%"),
        Metric("bleu", "BLEU", digits=1),
        Metric("chrf", "chrF", digits=1),
        Metric("weighted_f1", "weighted F1"),
        Metric("pooled_weighted_f1", "pooled weighted F1"),
        Metric("unweighted_accuracy", "unweighted accuracy"),
        Metric("accuracy", "accuracy"),
    )
}


def find_metric(key: str, known: Sequence[str]) -> Metric:
    """Return the metric ``key``, one of ``known``.

    Raises:
        UserError: it is not; names the nearest.
    """
    if key not in known:
        raise UserError(f"unknown metric {nearest(key, known)}")
    return METRICS[key]
