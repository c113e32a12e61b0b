"""Similarities of layers against scikit-learn, brute force and hand-made cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import KernelCenterer

from espnet_ext.analysis.layer_order import ORDERS, influence, removable, removal_order
from espnet_ext.analysis.similarity import LayerSimilarity, boundary
from espnet_ext.errors import UserError

LENGTHS = torch.tensor([9, 5, 7, 9, 3, 8, 9, 6, 4, 9, 7, 2])


def layers(seed=0, batch=12):
    """Four layers, the last two alike; frames beyond an utterance's end hold rubbish."""
    random = torch.Generator().manual_seed(seed)
    h = [torch.randn(batch, 9, 6, generator=random).double() for _ in range(3)]
    h[2] = 0.5 * h[1] + h[2]
    h.append(h[2] + 0.1 * torch.randn(batch, 9, 6, generator=random))
    inside = torch.arange(9) < LENGTHS[:batch].unsqueeze(1)
    return [one.masked_fill(~inside.unsqueeze(-1), 1e3) for one in h]


def vectors(outputs, time):
    """The utterances' vectors, one by one."""
    found = []
    for output in outputs:
        rows = []
        for frames, length in zip(output.numpy(), LENGTHS.tolist(), strict=False):
            if time == "mean":
                rows.append(frames[:length].mean(0))
            else:
                rows.append(np.concatenate([frames[:length], np.zeros((9 - length, 6))]).ravel())
        found.append(np.array(rows))
    return found


@pytest.mark.parametrize("time", ["flat", "mean"])
def test_cka_by_scikit_learn(time):
    found = LayerSimilarity(k=(2,), time=time)
    found.add(layers(), LENGTHS)
    # Centring and kernels are the library's; CKA is the cosine of centred kernels.
    grams = [KernelCenterer().fit_transform(linear_kernel(v)) for v in vectors(layers(), time)]
    expected = cosine_similarity([gram.ravel() for gram in grams])
    np.testing.assert_allclose(found.result().cka, expected, atol=1e-12)
    assert expected[2, 3] > 0.9 > expected[0, 3]


@pytest.mark.parametrize("time", ["flat", "mean"])
def test_cosine_by_scikit_learn(time):
    found = LayerSimilarity(k=(2,), time=time)
    found.add(layers(), LENGTHS)
    v = vectors(layers(), time)
    expected = [[np.diag(cosine_similarity(a, b)).mean() for b in v] for a in v]
    np.testing.assert_allclose(found.result().cosine, expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_neighbours_by_brute_force(k):
    """Inner product, the utterance itself left out."""
    found = LayerSimilarity(k=(k,))
    found.add(layers(), LENGTHS)
    sets = []
    for v in vectors(layers(), "flat"):
        products = v @ v.T
        order = [[j for j in np.argsort(-row) if j != i] for i, row in enumerate(products)]
        sets.append([set(row[:k]) for row in order])
    pairs = [[[len(a & b) / k for a, b in zip(x, y, strict=True)] for y in sets] for x in sets]
    expected = np.mean(pairs, axis=2)
    np.testing.assert_allclose(found.result().knn[k], expected, atol=1e-12)
    assert 0 < expected[0, 1] < 1


def test_neighbours_of_unit_vectors_by_scikit_learn():
    """For vectors of one length the largest inner product is the smallest distance."""
    h = [torch.nn.functional.normalize(torch.randn(12, 1, 6).double(), dim=2) for _ in range(2)]
    found = LayerSimilarity(k=(4,))
    found.add(h, torch.ones(12, dtype=torch.long))
    near = [NearestNeighbors(n_neighbors=4).fit(one[:, 0]).kneighbors()[1] for one in h]
    share = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(*near, strict=True)])
    assert found.result().knn[4][0, 1].item() == pytest.approx(share)


def test_batches_are_averaged_and_nothing_else_is_kept():
    both = LayerSimilarity(k=(2, 4))
    alone = []
    for seed in (0, 1, 2):
        both.add(layers(seed), LENGTHS)
        one = LayerSimilarity(k=(2, 4))
        one.add(layers(seed), LENGTHS)
        alone.append(one.result())
    found = both.result()
    assert (found.utterances, found.batches) == (36, 3)
    for name in ("cosine", "cka"):
        expected = torch.stack([getattr(one, name) for one in alone]).mean(0)
        torch.testing.assert_close(getattr(found, name), expected)
    for k in (2, 4):
        torch.testing.assert_close(found.knn[k], torch.stack([o.knn[k] for o in alone]).mean(0))
    torch.testing.assert_close(found.mean_knn(), (found.knn[2] + found.knn[4]) / 2)
    held = [v.values() if isinstance(v, dict) else [v] for v in vars(both).values()]
    kept = [v for values in held for v in values if isinstance(v, torch.Tensor)]
    assert sum(tensor.numel() for tensor in kept) == 4 * 4 * 4


def test_a_constant_layer_is_alike_to_none():
    h = torch.randn(12, 9, 6)
    found = LayerSimilarity(k=(2,))
    found.add([h, torch.ones_like(h), 2 * h + 0.0], torch.full((12,), 9))
    cka = found.result().cka
    assert cka[0, 1] == cka[1, 2] == 0
    assert cka[0, 2].item() == pytest.approx(1.0)


def test_boundaries_of_blocks():
    matrix = torch.full((7, 7), 0.3)
    matrix[:3, :3] = matrix[3:, 3:] = 0.9
    assert boundary(matrix)[0] == [3]
    assert boundary(matrix)[1] == pytest.approx(0.6)
    matrix[5:, 3:5] = matrix[3:5, 5:] = 0.5
    assert boundary(matrix, 3)[0] == [3, 5]
    assert boundary(torch.eye(2)) == ([], 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": "median"}, "time must be flat or mean"),
        ({"k": ()}, "k must be whole numbers"),
        ({"k": (0, 2)}, "k must be whole numbers"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(UserError, match=says):
        LayerSimilarity(**options)


def test_k_larger_than_the_batch():
    found = LayerSimilarity(k=(2, 12))
    with pytest.raises(ValueError, match="12 neighbours in a batch of 12 utterances"):
        found.add(layers(), LENGTHS)
    with pytest.raises(UserError, match="no batch"):
        found.result()


# -- orders of pruning


def measured():
    found = LayerSimilarity(k=(1, 3))
    found.add(layers(), LENGTHS)
    return found.result()


def test_orders():
    assert removal_order("backward", [0, 1, 2, 3]) == [3, 2, 1]
    assert removal_order("forward", [0, 2, 5]) == [2, 5]
    assert removal_order("forward", [0, 1, 2, 3], protected={2}) == [1, 3]
    similar = measured()
    scores = influence(similar, "bi_cosine")
    assert scores.tolist() == [1 - similar.cosine[i, i + 1].item() for i in range(3)]
    # Layer 3 makes nearly what layer 2 made, layer 1 something else than layer 0.
    assert removal_order("bi_cosine", range(4), similar) == [3, 2, 1]
    mean = (similar.knn[1] + similar.knn[3]) / 2
    by_knn = sorted(range(1, 4), key=lambda layer: 1 - mean[layer - 1, layer].item())
    assert removal_order("bi_knn", range(4), similar) == by_knn
    assert removal_order("bi_knn", [0, 4, 5, 9], similar)[0] == [0, 4, 5, 9][by_knn[0]]
    for order in ORDERS:
        assert 0 not in removal_order(order, range(4), similar)


def test_orders_that_cannot_be():
    with pytest.raises(UserError, match="unknown order 'backwards'; did you mean 'backward'"):
        removal_order("backwards", [0, 1])
    with pytest.raises(UserError, match="one layer"):
        removal_order("forward", [0])
    with pytest.raises(ValueError, match="similarities of 3 layers"):
        removal_order("bi_knn", [0, 1, 2], measured())


def test_how_many_layers_may_go():
    assert removable({0: True, 1: True, 2: True, 3: False, 4: True}) == 2
    assert removable({0: True, 1: False}) == 0
