"""The order in which layers of a stack are removed without retraining (arXiv 2409.16302).

Block influence of layer l + 1, the layer that makes h_(l+1) of h_l: BI = 1 - similarity of the
two, by cosine or by mutual k-nearest neighbours averaged over k. The least influential layer goes
first; scores are not computed again as layers go. The first layer stays in every order.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from espnet_ext.analysis.measure import ORDERS
from espnet_ext.analysis.similarity import Similarities
from espnet_ext.errors import UserError, nearest

BI = {"bi_cosine": "cosine", "bi_knn": "knn"}


def influence(similarities: Similarities, criterion: str) -> Tensor:
    """Block influence (layers - 1,) of all layers but the first, by a criterion of ``BI``."""
    matrix = similarities.cosine if BI[criterion] == "cosine" else similarities.mean_knn()
    return 1.0 - torch.diagonal(matrix, offset=1)


def removal_order(
    criterion: str,
    layers: Sequence[int],
    similarities: Similarities | None = None,
    protected: Collection[int] = (),
) -> list[int]:
    """Return the layers in the order of their removal; at least one layer is not among them.

    Args:
        criterion: one of ``ORDERS``.
        layers: indices of the stack's layers, first to last.
        similarities: of these layers' outputs, for the criteria of ``BI``.
        protected: layers that stay whatever the criterion says.

    Raises:
        UserError: unknown criterion, or a stack of one layer.
    """
    if criterion not in ORDERS:
        raise UserError(f"unknown order {nearest(criterion, ORDERS)}")
    if len(layers) < 2:
        raise UserError("a stack of one layer has none to remove")
    later = list(layers[1:])
    if criterion == "backward":
        found = later[::-1]
    elif criterion == "forward":
        found = later
    else:
        if similarities is None or len(similarities.cosine) != len(layers):
            raise ValueError(f"{criterion} needs the similarities of {len(layers)} layers")
        scores = influence(similarities, criterion).tolist()
        found = [layer for _, layer in sorted(zip(scores, later, strict=True))]
    return [layer for layer in found if layer not in protected]


def removable(good: Mapping[int, bool]) -> int:
    """How many layers can be removed, one after the other, while the value stays good enough.

    ``good``: whether it is, by number of layers removed, 0 included.
    """
    found = 0
    for count in sorted(good):
        if not good[count]:
            break
        found = count
    return found
