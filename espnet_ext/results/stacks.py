"""Similarity and pruning of the layers of stacks: what their files hold."""

from typing import Literal

from espnet_ext.results.comparison import MetricKey
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.schema import Record
from espnet_ext.validation import Count, Interval, Items, Named, Number, Strict, Text

MEASURES = ("cosine", "cka", "knn")
BLOCK_RULE = "largest mean similarity inside blocks minus that across blocks"
SHARE = 0.95  # of the whole stack's score, that a removable layer leaves


def least_value(metric: str, full: float) -> float:
    """The worst value of a metric that still is SHARE of the whole stack's score.

    Where less is better, as of error rates, that is SHARE of what is right.
    """
    return SHARE * full if METRICS[metric].direction > 0 else 1 - SHARE * (1 - full)


type Matrix = Items[Items[Number]]


class StackModel(Strict):
    """A stack of layers that was examined."""

    path: Text
    family: Text
    layers: Count
    width: Count
    sha256: Text


class StackRecord(Record):
    """How the layers of a stack were compared."""

    name: Text
    model: StackModel
    time: Literal["flat", "mean"]  # frames one after the other, or their mean
    seconds: Number | None  # utterances were cut off after
    batch_size: Count
    k: Items[Count]
    set: Text
    utterances: Count


class Blocks(Strict):
    """Where a matrix of similarities falls into blocks."""

    first_layers: list[Count] | None  # of the second block on; None: too few layers
    contrast: Number


class Similarity(StackRecord):
    """How alike the outputs of layers are; matrices (layers, layers)."""

    batches: Count
    cosine: Matrix
    cka: Matrix
    knn: Matrix  # averaged over k
    knn_by_k: Named[Matrix]
    rule: Text
    blocks: Named[Blocks]  # by measure

    def matrix(self, measure: str) -> list[list[Number]]:
        """The matrix of a measure, one of MEASURES."""
        return {"cosine": self.cosine, "cka": self.cka, "knn": self.knn}[measure]


class Point(Strict):
    """A score after some layers were removed."""

    removed: Count
    parameters: Count  # of the stack left, without its front end
    value: Number  # on the whole set, mean over repeats
    interval: Interval  # 2.5 to 97.5 % over repeats, each on many resampled sets


class Order(Strict):
    """An order in which layers are removed."""

    order: Text
    removable: Count  # layers, with the mean at SHARE of all layers' or above up to there
    sequences: Items[list[Count]]  # layers as they are removed, in every repeat
    points: Items[Point]


class Pruning(StackRecord):
    """Curves of a model's score as layers are removed without retraining."""

    probes: Items[Text]
    metric: MetricKey
    score_set: Text
    classes: list[Text]  # of a probe
    chance: Number | None  # one over the number of classes
    majority: Number | None  # of always naming the commonest class
    full: Number  # of the whole stack
    repeats: Count
    protected: list[Count]
    orders: Items[Order]
