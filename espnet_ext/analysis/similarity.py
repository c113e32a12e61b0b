"""How alike the layers of a stack are: cosine, linear CKA, mutual k-nearest-neighbour alignment.

As in arXiv 2409.16302 and its authors' code: the output of every layer, compared within batches
of utterances, the batches averaged. Nothing is kept of a batch but matrices of layers by layers,
so memory does not grow with the set.

An utterance is one vector a layer: all its frames one after the other (``flat``, what the
authors do with words of one second), or their mean (``mean``). Shorter utterances count as if
zeros followed, so the inner product of two is over the frames that both have.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_ext.errors import UserError

TIMES = ("flat", "mean")


@dataclass(frozen=True)
class Similarities:
    """Means over batches; each matrix is (layers, layers), symmetric, 1 on the diagonal."""

    cosine: Tensor
    cka: Tensor
    knn: dict[int, Tensor]  # by k
    utterances: int
    batches: int

    def mean_knn(self) -> Tensor:
        """The alignment averaged over all k."""
        return torch.stack(list(self.knn.values())).mean(0)


class LayerSimilarity:
    """Adds up batches of layer outputs; ``result`` gives the similarities of all pairs."""

    def __init__(self, k: Sequence[int] = (2, 4, 8, 16, 32, 64), time: str = "flat"):
        """Choose the numbers of neighbours and what an utterance's vector is.

        Raises:
            UserError: an unknown ``time``, or a k that is not a whole number from 1 on.
        """
        if time not in TIMES:
            raise UserError(f"time must be {' or '.join(TIMES)}, not {time!r}")
        if not k or any(not isinstance(n, int) or n < 1 for n in k):
            raise UserError(f"k must be whole numbers from 1 on, not {list(k)}")
        self.k = tuple(sorted(set(k)))
        self.time = time
        self._cosine: Tensor | None = None  # sum over utterances
        self._cka = torch.zeros(())  # sums over batches
        self._knn = {n: torch.zeros(()) for n in self.k}
        self._utterances = self._batches = 0

    @torch.no_grad()
    def add(self, outputs: Sequence[Tensor], lengths: Tensor) -> None:
        """Add a batch: for each layer (batch, time, width), and frames (batch,).

        Raises:
            ValueError: a k is not smaller than the batch (``Measure.for_set`` chooses both).
        """
        batch = len(lengths)
        if self.k[-1] >= batch:
            raise ValueError(f"{self.k[-1]} neighbours in a batch of {batch} utterances")
        vectors = [self._vectors(output, lengths) for output in outputs]
        cosine = _cosines(vectors)
        self._cosine = cosine if self._cosine is None else self._cosine + cosine
        grams = torch.stack([v @ v.T for v in vectors])
        self._cka = self._cka + _cka(grams)
        for n in self.k:
            self._knn[n] = self._knn[n] + _alignment(grams, n)
        self._utterances += batch
        self._batches += 1

    def _vectors(self, output: Tensor, lengths: Tensor) -> Tensor:
        """One vector an utterance, (batch, features), in float64."""
        frames = torch.arange(output.shape[1], device=output.device)
        inside = frames < lengths.to(output.device).unsqueeze(1)
        kept = output.double().masked_fill(~inside.unsqueeze(-1), 0.0)
        if self.time == "mean":
            return kept.sum(1) / inside.sum(1, keepdim=True)
        return kept.flatten(1)

    def result(self) -> Similarities:
        """The means so far.

        Raises:
            UserError: nothing was added.
        """
        if self._cosine is None:
            raise UserError("no batch to compare layers on")
        return Similarities(
            cosine=(self._cosine / self._utterances).cpu(),
            cka=(self._cka / self._batches).cpu(),
            knn={n: (total / self._batches).cpu() for n, total in self._knn.items()},
            utterances=self._utterances,
            batches=self._batches,
        )


def _cosines(vectors: Sequence[Tensor]) -> Tensor:
    """Cosine of an utterance's vectors in two layers, summed over utterances, for all pairs."""
    unit = [v / v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny) for v in vectors]
    found = unit[0].new_ones(len(unit), len(unit)) * len(unit[0])
    for a, b in itertools.combinations(range(len(unit)), 2):
        found[a, b] = found[b, a] = (unit[a] * unit[b]).sum()
    return found


def _cka(grams: Tensor) -> Tensor:
    """Linear CKA of all pairs from Gram matrices (layers, batch, batch), biased estimate.

    <HKH, HLH> / (|HKH| |HLH|), H the centring matrix (Kornblith et al., arXiv 1905.00414). A
    layer that gives all utterances the same is alike to none: 0.
    """
    centred = grams - grams.mean(1, keepdim=True)
    centred = (centred - centred.mean(2, keepdim=True)).flatten(1)
    size = centred.norm(dim=1, keepdim=True)
    # What is left of a constant by rounding is no structure.
    still = size.squeeze(1) <= 1e-12 * grams.flatten(1).norm(dim=1)
    unit = centred / size.clamp(min=torch.finfo(size.dtype).tiny)
    unit = unit.masked_fill(still.unsqueeze(1), 0.0)
    return (unit @ unit.T).clamp(max=1.0)


def _alignment(grams: Tensor, k: int) -> Tensor:
    """Mean share of the k nearest neighbours that two layers have in common, for all pairs.

    Neighbours are those of largest inner product, the utterance itself excluded.
    """
    batch = grams.shape[1]
    itself = torch.eye(batch, dtype=torch.bool, device=grams.device)
    nearest = grams.masked_fill(itself, -torch.inf).topk(k, dim=2).indices
    member = torch.zeros_like(grams).scatter_(2, nearest, 1.0).flatten(1)
    return member @ member.T / (batch * k)


def boundary(matrix: Tensor, blocks: int = 2) -> tuple[list[int], float]:
    """Cut a stack into blocks of layers that are alike inside and unlike each other.

    Rule: of all ways to cut the stack into ``blocks`` runs of layers, that with the largest
    contrast: the mean similarity of two different layers of one block minus that of two layers
    of different blocks. A layer's similarity to itself does not count.

    Args:
        matrix: similarities (layers, layers).
        blocks: how many, from 2 on.

    Returns:
        The first layer of each block but the first, and the contrast; no cut and 0 where the
        stack has too few layers to have a pair inside a block.
    """
    count = len(matrix)
    if count <= blocks:
        return [], 0.0
    upper = torch.triu(torch.ones(count, count, dtype=torch.bool), diagonal=1)
    best: tuple[float, tuple[int, ...]] | None = None
    for cuts in itertools.combinations(range(1, count), blocks - 1):
        block = torch.bucketize(torch.arange(count), torch.tensor(cuts), right=True)
        same = (block.unsqueeze(0) == block.unsqueeze(1)) & upper
        contrast = float(matrix[same].mean() - matrix[~same & upper].mean())
        if best is None or contrast > best[0]:
            best = contrast, cuts
    assert best is not None
    return list(best[1]), best[0]
