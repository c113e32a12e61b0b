"""Protocols for methods that need more of ``deploy`` than plain layers of the effective weights.

A method is a parametrization (torch.nn.utils.parametrize) whose ``forward`` returns the effective
weight; if its layers are deployed to plain ones, that is enough.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import nn

from espnet_ext.methods.nested_options import Member

Memo = dict[int, Any]  # the memo of ``copy.deepcopy``: id of an original, what replaces it


@runtime_checkable
class Deployable(Protocol):
    """A parametrization of a weight whose layer has a second variant."""

    variant: str  # its name, for ``deploy(model, variant)`` and the option ``form`` of the method

    def deployed(self, layer: nn.Module, memo: Memo) -> nn.Module:
        """Build the layer that replaces ``layer``.

        Its attribute ``weight``, if any, is the effective weight: parents may read it instead of
        calling the layer.

        Shared tensors are looked up in ``memo`` by the id of the trained tensor, or added to it.
        """
        ...


@runtime_checkable
class Rounding(Protocol):
    """A parametrization that rounds: its weight is computed in the type of the training.

    Other weights are computed in float64 and rounded once.
    """

    rounds: bool


@runtime_checkable
class Placed(Protocol):
    """A parametrization with a place in a chain of several methods (``chains``)."""

    place: int


@runtime_checkable
class Product(Protocol):
    """A parametrization whose product can be computed in float64 and rounded once."""

    in_float64: bool  # whether it is


@runtime_checkable
class Family(Protocol):
    """A container of layers that holds several sub-networks, each a variant of ``deploy``."""

    family: tuple[Member, ...]  # the largest first

    def as_member(self, name: str) -> AbstractContextManager[Member]:
        """Select a sub-network inside the block; ``merged`` is the largest."""
        ...

    def extract_member(self, memo: Memo) -> nn.Module:
        """Build the plain container of the selected sub-network, whose layers are in ``memo``."""
        ...


@runtime_checkable
class FamilyOwner(Protocol):
    """A module around a family that keeps the sizes of its layers, for example in a config."""

    def member_extracted(self, member: Member) -> None:
        """Update the sizes after ``deploy`` has reduced the family to ``member``."""
        ...
