"""Batch normalisations of a nested family: statistics for each sub-network, or none."""

from collections.abc import Sequence

from torch import nn

from espnet_ext.errors import UserError
from espnet_ext.methods.nested_layers import (
    FrameNorm,
    NestedBatchNorm,
    Selection,
    statistics_key,
)
from espnet_ext.methods.nested_options import Member


def nest_norms(stack: nn.Module, family: Sequence[Member], selection: Selection) -> None:
    """Convert every batch normalisation of the stack to a nested one, in place."""
    keys: dict[int, tuple[nn.BatchNorm1d, dict[str, None]]] = {}
    for member in family:
        used: dict[int, str] = {}
        for place, layer in enumerate(member.layers, 1):
            key = statistics_key(member.layers[:place], member)
            for norm in stack.get_submodule(str(layer)).modules():
                if type(norm) is nn.BatchNorm1d:
                    keys.setdefault(id(norm), (norm, {}))[1][key] = None
                    if used.setdefault(id(norm), key) != key:
                        raise UserError(
                            f"nested: {member.name} has a layer twice, whose batch normalisation "
                            "then has one set of statistics; choose norm: layer"
                        )
    for norm, found in keys.values():
        NestedBatchNorm.convert(norm, selection, list(found))


def replace_norms(stack: nn.Module) -> None:
    """Replace every batch normalisation by a FrameNorm, in place."""
    memo: dict[int, nn.Module] = {}
    for parent in list(stack.modules()):
        for name, child in parent._modules.items():
            if type(child) is nn.BatchNorm1d:
                new = memo.setdefault(id(child), FrameNorm(child.num_features))
                parent._modules[name] = new
