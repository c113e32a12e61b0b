"""How layers are compared and removed. Importing this needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from espnet_ext.errors import UserError

K = (2, 4, 8, 16, 32, 64)
PARTS = ("encoder", "decoder")
ORDERS = ("backward", "forward", "bi_cosine", "bi_knn")  # of removal (arXiv 2409.16302, 3.2)


@dataclass(frozen=True)
class Measure:
    """How the outputs of layers are compared.

    Attributes:
        k: numbers of nearest neighbours.
        batch_size: utterances that are compared with each other.
        batches: most batches that are drawn of a set.
        seed: of the draw.
        time: ``flat``, frames in a row, or ``mean``, their mean.
        seconds: utterances are cut off after so many; None: never.
    """

    k: Sequence[int] = K
    batch_size: int = 128
    batches: int = 20
    seed: int = 1
    time: str = "flat"
    seconds: float | None = None

    def for_set(self, name: str, utterances: int, k: Sequence[int] | None = None) -> Self:
        """The measure of a set: a batch has at most its utterances, k fits a batch.

        Args:
            name: of the set.
            utterances: in the set.
            k: what the user asked for; default: those of ``K`` that fit.

        Raises:
            UserError: the set or the batch is too small for ``k``, or ``seconds`` is not above 0.
        """
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(f"--seconds must be above 0, not {self.seconds:g}")
        size = min(self.batch_size, utterances)
        wanted = sorted(set(k or [number for number in K if number < size] or K[:1]))
        if wanted[-1] >= size:
            many = f"{wanted[-1]} neighbours need more than {wanted[-1]} utterances"
            if utterances <= wanted[-1]:
                raise UserError(f"--k: {many}, and {name} has {utterances}; use a smaller k")
            raise UserError(f"--k: {many} in a batch; give a larger --batch_size than {size}")
        return replace(self, k=wanted, batch_size=size)

    def record(self) -> dict[str, Any]:
        """The entries that results keep."""
        return {key: getattr(self, key) for key in ("time", "seconds", "batch_size", "k")}

    def words(self) -> str:
        """The options of a command that measures the same."""
        words = f"--k {' '.join(map(str, self.k))} --time {self.time}"
        for key in ("batch_size", "batches", "seed", "seconds"):
            if getattr(self, key) != getattr(type(self), key):
                words += f" --{key} {getattr(self, key)}"
        return words


@dataclass(frozen=True)
class Removal:
    """How the layers of a probe are removed and its curve is drawn.

    Attributes:
        orders: of ``ORDERS``.
        metric: ``accuracy`` or ``weighted_f1``; of a recogniser ``wer``.
        repeats: draws of the batches that layers are scored on, for each probe.
        protect: layers that stay, as do the first and those that the stack protects.
        part: of ``PARTS``: whose layers are removed.
    """

    orders: Sequence[str] = ORDERS
    metric: str = "accuracy"
    repeats: int = 5
    protect: Sequence[int] = ()
    part: str = "encoder"
