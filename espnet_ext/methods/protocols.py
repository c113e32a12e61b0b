"""What ``deploy`` asks of a method beyond computing a weight.

A method is a parametrization (torch.nn.utils.parametrize) whose ``forward`` returns the effective
weight. If its layers are deployed to plain layers, it needs nothing from this module.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import nn

from espnet_ext.methods.nested_options import Member

Memo = dict[int, Any]  # the memo of ``copy.deepcopy``: id of an original, what replaces it


@runtime_checkable
class Deployable(Protocol):
    """A parametrization of a weight whose layer has a second deployed form.

    Attributes:
        variant: name of that form, for ``deploy(model, variant)``; also a value of the option
            ``form`` of the method.
    """

    variant: str

    def deployed(self, layer: nn.Module, memo: Memo) -> nn.Module:
        """Build the layer that replaces ``layer``.

        Tensors that layers share are looked up in ``memo`` by the id of the trained tensor, and
        added where they are missing.
        """
        ...


@runtime_checkable
class Rounding(Protocol):
    """A parametrization that rounds, so its weight is computed in the type of the training.

    All other weights are computed in float64 and rounded once.
    """

    rounds: bool


@runtime_checkable
class Family(Protocol):
    """A container of layers that holds several sub-networks, each a variant of ``deploy``.

    Attributes:
        family: the sub-networks, the largest first.
    """

    family: tuple[Member, ...]

    def as_member(self, name: str) -> AbstractContextManager[Member]:
        """Select a sub-network inside a ``with`` block; ``merged`` is the largest.

        Raises:
            UserError: no sub-network has this name.
        """
        ...

    def extract_member(self, memo: Memo) -> nn.Module:
        """Build the plain container of the selected sub-network.

        ``memo`` holds the deployed layers already.
        """
        ...


@runtime_checkable
class FamilyOwner(Protocol):
    """A module around a family that keeps the sizes of its layers, for example in a config."""

    def member_extracted(self, member: Member) -> None:
        """Update the sizes after ``deploy`` has reduced the family to ``member``."""
        ...
