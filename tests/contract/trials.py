"""Option sets that the contract suite tests each registered method with.

Choose sets that reach every branch of the method.
"""

from typing import Any

TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "hrf": (
        {},
        {"sites": ["ffn"], "ratio": 2, "factors": 3},
        {"sites": ["qkv", "project"], "ratio": 1.5},
        {"sites": ["all"], "ratio": 2},
        {"sites": ["wide_conv"], "ratio": 1.5, "factors": 3},
        {"sites": ["recurrent"], "ratio": 2},
    ),
    "nested": (
        {"depths": [2, 1], "widths": [24, 10], "bits": [32, 8, 4]},
        {"depths": [3, [1, 2]], "widths": [24, 10], "bits": [8]},
        {"depths": [2, [1]], "bits": [8, 2], "per": "tensor"},
        {"bits": [8], "scale": "learnt"},
        {"widths": [24, 1], "bits": [4], "scale": "learnt", "per": "tensor"},
        {"widths": [24, 10], "bits": [32, 6], "scale": "deviation", "step": 0.7, "per": "tensor"},
    ),
    "residual": (
        {"share": 2, "rank": 4},
        {"share": 2, "rank": 0, "diagonal": False},
        {"share": 2, "rank": 3, "diagonal": False, "sites": ["qkv"]},
        {"share": 2, "rank": 0, "sites": ["ffn", "conv"]},
    ),
}


def trials_of(method: str) -> tuple[dict[str, Any], ...]:
    """Return the option sets of a registered method.

    Raises:
        LookupError: the method has none.
    """
    if not TRIALS.get(method):
        raise LookupError(
            f"method {method!r} is registered but has no option sets: "
            "add an entry to TRIALS in tests/contract/trials.py"
        )
    return TRIALS[method]
