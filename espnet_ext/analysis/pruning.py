"""Curves of a model's score as layers of its stack are removed one by one, without retraining."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.analysis.decoder_layers import DecoderLayers, Outputs
from espnet_ext.analysis.layer_order import BI, removable, removal_order
from espnet_ext.analysis.layers import (
    Rows,
    classes_after,
    compare_layers,
    draw_batches,
    layers_of,
    load_probe,
    load_recogniser,
    stack_outputs,
    texts_after,
)
from espnet_ext.analysis.measure import Measure, Removal
from espnet_ext.analysis.pruning_scores import ClassJudge, Judge, is_removable
from espnet_ext.analysis.similarity import Similarities
from espnet_ext.encoders.pretrained.stack import Stack, check_layers
from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import parameter_count

_BAND = (0.025, 0.975)
RESAMPLES = 200  # of the set, for each repeat: a band of five repeats alone would be luck


@dataclass(frozen=True)
class _Repeat:
    """One model and one draw of the batches that layers are scored on."""

    sequences: dict[str, list[int]]  # by order: layers as they go
    decisions: Mapping[tuple[int, ...], list[str]]  # by the layers that are removed, sorted
    parameters: dict[tuple[int, ...], int]


class Curves:
    """Collects repeats, and summarises them as the curves of all orders."""

    def __init__(self, judge: Judge, removal: Removal, seed: int):
        """``judge`` knows the references of the set; ``seed``: of the resampling."""
        self.judge = judge
        self.removal = removal
        self.orders = list(removal.orders)
        self.seed = seed
        self._repeats: list[_Repeat] = []

    def add(self, repeat: _Repeat) -> None:
        """Add one repeat."""
        self._repeats.append(repeat)

    def summary(self) -> dict[str, Any]:
        """The part of a pruning record (``results.stacks.Pruning``) that depends on the repeats."""
        count = len(self.judge.references)
        counted = [
            {removed: self.judge.counted(found) for removed, found in repeat.decisions.items()}
            for repeat in self._repeats
        ]
        every = np.arange(count)
        whole = [self._values(*pair, every) for pair in zip(self._repeats, counted, strict=True)]
        rng = np.random.default_rng(self.seed)
        resampled = [
            self._values(*pair, rng.integers(count, size=count))
            for pair in zip(self._repeats, counted, strict=True)
            for _ in range(RESAMPLES)
        ]
        full = float(np.mean([values[self.orders[0]][0] for values in whole]))
        return {
            "utterances": count,
            **self.judge.record(),
            "full": full,
            "repeats": len(self._repeats),
            "orders": [self._order(order, whole, resampled, full) for order in self.orders],
        }

    def _values(
        self, repeat: _Repeat, counted: Mapping[tuple[int, ...], np.ndarray], chosen: np.ndarray
    ) -> dict[str, list[float]]:
        """For each order, the metric after 0, 1, 2 ... removals on the chosen utterances."""
        scores = {removed: self.judge.value(counts, chosen) for removed, counts in counted.items()}
        return {
            order: [scores[removed] for removed in prefixes(sequence)]
            for order, sequence in repeat.sequences.items()
        }

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
            "removable": removable(
                {count: is_removable(self.judge, mean, full) for count, mean in enumerate(means)}
            ),
            "sequences": [repeat.sequences[order] for repeat in self._repeats],
            "points": points,
        }


def prefixes(sequence: Sequence[int]) -> list[tuple[int, ...]]:
    """The layers that are missing after 0, 1, 2 ... removals, each sorted."""
    return [tuple(sorted(sequence[:count])) for count in range(len(sequence) + 1)]


def prune_probe(
    folder: Path, score_rows: Rows, rows: Rows, curves: Curves, measure: Measure
) -> tuple[Stack | DecoderLayers, set[int]]:
    """Add the repeats of one deployed probe to ``curves``; see ``prune``."""
    model, classes = load_probe(folder)
    judge = curves.judge
    assert isinstance(judge, ClassJudge)
    judge.use_classes(classes)

    def decide(removals: Sequence[tuple[int, ...]]) -> Mapping[tuple[int, ...], list[str]]:
        return classes_after(model, removals, rows, classes)

    stack = model.encoder.stack
    return prune(folder, stack, stack_outputs(stack), decide, score_rows, curves, measure)


def prune_recogniser(
    folder: Path,
    decoding: tuple[str, dict[str, Any]],
    score_rows: Rows,
    texts: Mapping[str, str],
    rows: Rows,
    curves: Curves,
    measure: Measure,
) -> tuple[Stack | DecoderLayers, set[int]]:
    """Add the repeats of one deployed recogniser to ``curves``; see ``prune``.

    ``decoding`` is its method with options; ``texts`` are of the ``score_rows``.
    """
    part = curves.removal.part
    recogniser = load_recogniser(folder, *decoding, part)
    layers, outputs = layers_of(recogniser, part, texts)

    def decide(removals: Sequence[tuple[int, ...]]) -> Mapping[tuple[int, ...], list[str]]:
        return texts_after(recogniser, layers, removals, rows)

    return prune(folder, layers, outputs, decide, score_rows, curves, measure)


def prune(
    folder: Path,
    stack: Stack | DecoderLayers,
    outputs: Outputs,
    decide: Callable[[Sequence[tuple[int, ...]]], Mapping[tuple[int, ...], list[str]]],
    score_rows: Rows,
    curves: Curves,
    measure: Measure,
) -> tuple[Stack | DecoderLayers, set[int]]:
    """Add the repeats of one model to ``curves``.

    Args:
        folder: of the deployed model.
        stack: its layers.
        outputs: of these layers.
        decide: what the model decides without some layers, in the order of the references.
        score_rows: utterances that layers are scored on.
        curves: what the repeats are added to.
        measure: how layers are compared.

    Returns:
        The stack, and the layers that every order kept.

    Raises:
        UserError: a protected layer that is none, or a stack of one layer.
    """
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
            found = compare_layers(outputs, batches, measure, title)
        drawn.append({o: removal_order(o, stack.kept, found, protected) for o in curves.orders})
    every = {removed for repeat in drawn for seq in repeat.values() for removed in prefixes(seq)}
    removals = sorted(every, key=lambda removed: (len(removed), removed))
    decisions = decide(removals)
    parameters = {
        removed: parameter_count((stack.remove(removed) if removed else stack).layers)
        for removed in removals
    }
    for sequences in drawn:
        curves.add(_Repeat(sequences, decisions, parameters))
    return stack, protected
