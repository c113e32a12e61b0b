"""Curves of a probe's score as layers of its stack are removed one by one, without retraining."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.analysis.layer_order import BI, removable, removal_order
from espnet_ext.analysis.layers import Rows, classes_after, compare_layers, draw_batches, load_probe
from espnet_ext.analysis.measure import Measure, Removal
from espnet_ext.analysis.similarity import Similarities
from espnet_ext.encoders.pretrained.stack import Stack, check_layers
from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import parameter_count
from espnet_ext.results.stacks import SHARE
from espnet_ext.score.classification import metrics, weighted_f1

_BAND = (0.025, 0.975)
RESAMPLES = 200  # of the set, for each repeat: a band of five repeats alone would be luck


@dataclass(frozen=True)
class _Repeat:
    """One probe and one draw of the batches that layers are scored on."""

    sequences: dict[str, list[int]]  # by order: layers as they go
    decisions: Mapping[tuple[int, ...], list[str]]  # by the layers that are removed, sorted
    parameters: dict[tuple[int, ...], int]


class Curves:
    """Collects repeats, and summarises them as the curves of all orders."""

    def __init__(self, references: Sequence[str], removal: Removal, seed: int):
        """``references``: the classes of the set, in its order; ``seed``: of the resampling."""
        self.references = list(references)
        self.removal = removal
        self.orders = list(removal.orders)
        self.metric = removal.metric
        self.seed = seed
        self.classes: list[str] = []
        self._repeats: list[_Repeat] = []

    def add(self, classes: Sequence[str], repeat: _Repeat) -> None:
        """Add one repeat of a probe that knows ``classes``.

        Raises:
            UserError: the probes differ in their classes, or the set has one that they lack.
        """
        if self.classes and self.classes != list(classes):
            raise UserError(
                "the probes have different classes; give probes that differ in seed only"
            )
        self.classes = list(classes)
        for label in sorted(set(self.references) - set(classes)):
            raise UserError(f"the set has the class {label}, which the probe was not trained on")
        self._repeats.append(repeat)

    def summary(self) -> dict[str, Any]:
        """The part of a pruning record (``results.schema.Pruning``) that depends on the repeats."""
        count = len(self.references)
        places = [self._places(repeat) for repeat in self._repeats]
        every = np.arange(count)
        whole = [self._values(*pair, every) for pair in zip(self._repeats, places, strict=True)]
        rng = np.random.default_rng(self.seed)
        resampled = [
            self._values(*pair, rng.integers(count, size=count))
            for pair in zip(self._repeats, places, strict=True)
            for _ in range(RESAMPLES)
        ]
        full = float(np.mean([values[self.orders[0]][0] for values in whole]))
        share = Counter(self.references).most_common(1)[0][1] / len(self.references)
        always = metrics(self.references, self.references, self.classes)["majority"]["weighted_f1"]
        return {
            "utterances": len(self.references),
            "classes": self.classes,
            "chance": 1 / len(self.classes),
            "majority": share if self.metric == "accuracy" else always,
            "full": full,
            "repeats": len(self._repeats),
            "orders": [self._order(order, whole, resampled, full) for order in self.orders],
        }

    def _places(self, repeat: _Repeat) -> dict[tuple[int, ...], np.ndarray]:
        """Decisions after each removal as indices of classes; one index more means no class."""
        place = {name: index for index, name in enumerate(self.classes)}
        return {
            removed: np.array([place.get(label, len(place)) for label in labels])
            for removed, labels in repeat.decisions.items()
        }

    def _values(
        self, repeat: _Repeat, places: Mapping[tuple[int, ...], np.ndarray], chosen: np.ndarray
    ) -> dict[str, list[float]]:
        """For each order, the metric after 0, 1, 2 ... removals on the chosen utterances."""
        meant = np.array([self.classes.index(label) for label in self.references])[chosen]
        scores = {
            removed: self._score(meant, named[chosen], len(self.classes) + 1)
            for removed, named in places.items()
        }
        return {
            order: [scores[removed] for removed in prefixes(sequence)]
            for order, sequence in repeat.sequences.items()
        }

    def _score(self, meant: np.ndarray, named: np.ndarray, classes: int) -> float:
        if self.metric == "accuracy":
            return float((meant == named).mean())
        cells = np.bincount(meant * classes + named, minlength=classes * classes)
        return float(weighted_f1(cells.reshape(classes, classes)))

    def _order(
        self,
        order: str,
        whole: Sequence[Mapping[str, list[float]]],
        resampled: Sequence[Mapping[str, list[float]]],
        full: float,
    ) -> dict[str, Any]:
        means = np.mean([values[order] for values in whole], axis=0)
        bands = np.quantile([values[order] for values in resampled], _BAND, axis=0)
        first = self._repeats[0]
        points = [
            {
                "removed": len(removed),
                "parameters": first.parameters[removed],
                "value": float(means[len(removed)]),
                "interval": [float(low), float(high)],
            }
            for removed, low, high in zip(prefixes(first.sequences[order]), *bands, strict=True)
        ]
        return {
            "order": order,
            "removable": removable(dict(enumerate(means.tolist())), SHARE * full),
            "sequences": [repeat.sequences[order] for repeat in self._repeats],
            "points": points,
        }


def prefixes(sequence: Sequence[int]) -> list[tuple[int, ...]]:
    """The layers that are missing after 0, 1, 2 ... removals, each sorted."""
    return [tuple(sorted(sequence[:count])) for count in range(len(sequence) + 1)]


def prune_probe(
    folder: Path, score_rows: Rows, rows: Rows, curves: Curves, measure: Measure
) -> tuple[Stack, set[int]]:
    """Add the repeats of one deployed probe to ``curves``.

    Args:
        folder: of the deployed probe.
        score_rows: utterances that layers are scored on.
        rows: utterances that the probe is scored on, in the order of the curves' references.
        curves: what the repeats are added to.
        measure: how layers are compared.

    Returns:
        The probe's stack, and the layers that every order kept.

    Raises:
        UserError: see ``load_probe``; a protected layer that is none, or a stack of one layer.
    """
    model, classes = load_probe(folder)
    stack: Stack = model.encoder.stack
    removal = curves.removal
    check_layers(stack, [layer for layer in removal.protect if layer not in stack.kept])
    protected = {stack.kept[0], *stack.protected, *removal.protect}
    if protected >= set(stack.kept):
        raise UserError(f"all {stack.num_layers} layers are protected: none is left to remove")
    drawn: list[dict[str, list[int]]] = []
    found: Similarities | None = None
    for repeat in range(removal.repeats):
        # A set that is one batch is the same in every draw.
        redrawn = found is None or len(score_rows) > measure.batch_size
        if BI.keys() & set(curves.orders) and redrawn:
            title = f"{folder.parts[1]}, scoring {repeat + 1}/{removal.repeats}"
            batches = draw_batches(score_rows, measure, repeat)
            found = compare_layers(stack, batches, measure, title)
        drawn.append({o: removal_order(o, stack.kept, found, protected) for o in curves.orders})
    every = {removed for repeat in drawn for seq in repeat.values() for removed in prefixes(seq)}
    removals = sorted(every, key=lambda removed: (len(removed), removed))
    decisions = classes_after(model, removals, rows, classes)
    parameters = {
        removed: parameter_count((stack.remove(removed) if removed else stack).layers)
        for removed in removals
    }
    for sequences in drawn:
        curves.add(classes, _Repeat(sequences, decisions, parameters))
    return stack, protected
