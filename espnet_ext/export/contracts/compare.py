"""How far the scores of graphs are from torch's."""

from collections.abc import Callable

import numpy as np

from espnet_ext.export.runtime.run_onnx import Model


def next_scores(model: Model, wave: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that takes one token after another and returns the scores (V,) of the next."""
    states, step = model.steps(model.encode(wave))

    def scores(token: int) -> np.ndarray:
        nonlocal states
        found, states = step(token, states)
        return found

    return scores


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest number that is wanted.

    Infinite for other shapes and for numbers that are not finite.
    """
    if found.shape != wanted.shape:
        return float("inf")
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return difference if np.isfinite(difference) else float("inf")
