"""How far the scores of graphs are from torch's."""

import numpy as np


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest number that is wanted.

    Infinite for other shapes and for numbers that are not finite.
    """
    if found.shape != wanted.shape:
        return float("inf")
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return difference if np.isfinite(difference) else float("inf")
