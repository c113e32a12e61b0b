"""ResidualTransformer: layers that share weights, each with a small residual (arXiv 2310.02489).

The L layers of a stack are divided into groups of K. All layers of a group share every projection
weight U and its bias; layer l adds its residual: W_l = U + A_l B_l + D_l (equations 2 and 3), with
A B of rank R and D a rectangular diagonal. Normalisation and dropout stay per layer. A weight is
(o, i) here, so the paper's A (i, R) is ``down`` transposed and its B (R, o) is ``up`` transposed:
W_l = U + up down + D.

``up`` and ``diagonal`` start at zero: training starts at the sharing-only model.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from torch import nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import (
    ROUNDING,
    attach,
    chain_of,
    originals,
    part_of,
    parts_with_chains,
    place_of,
    share,
)
from espnet_ext.methods.options import WHOLE, Options, Positive, Whole
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.registry import Method, register
from espnet_ext.methods.residual_start import start
from espnet_ext.methods.residual_weight import ResidualWeight
from espnet_ext.methods.sites import (
    Layer,
    check_sites,
    find_layers,
    tie,
    tied_groups,
)

# A layer of a numbered stack: its stack, its number, the rest of its name.
_IN_STACK = re.compile(r"^((?:.*\.)?(?:encoders|layers))\.(\d+)\.(.+)$")
_SHARE = "a whole number of at least 1 or a list of such numbers"


class ResidualOptions(Options):
    """Options of ResidualTransformer, as written under ``encoder_conf: {residual: ...}``.

    Attributes:
        share: K >= 1, layers in a group (the last group may be smaller), or the list of all
            groups' sizes, whose sum is the number of layers.
        rank: R >= 0 of the low-rank part; 0 leaves it out.
        diagonal: whether there is a diagonal part. Without both parts, layers only share.
        sites: which layers share; the paper's are the six projections.
        start: what trained layers become: ``mean``, a base at their mean and residuals nearest to
            what is left; ``first``, a base at the first of them and residuals of zero.
        form: ``train``, or ``shared``: the layers that ``deploy(model, "shared")`` writes.
    """

    method = "residual"
    share: Positive | Annotated[Sequence[Positive], Field(min_length=1)] = Field(
        3, description=_SHARE
    )
    rank: Whole = Field(16, description=WHOLE)
    diagonal: bool = Field(True, description="true or false")
    sites: tuple[str, ...] = Field(("qkv", "project", "ffn"), description="a list of sites")
    start: Literal["mean", "first"] = Field("mean", description="mean or first")
    form: Literal["train", "shared"] = "train"

    @field_validator("sites", mode="before")
    @classmethod
    def _sites_of_layers(cls, value: Any) -> tuple[str, ...]:
        sites = check_sites(value)
        if {"cls", "all"} & set(sites):
            raise UserError("residual: only layers of a stack can share; sites cls, all cannot")
        return sites


def group_numbers(options: ResidualOptions, layers: int, part: bool = False) -> list[int]:
    """Return the group of each of ``layers`` layers, floor(l / K) for a single K.

    ``part``: they are the first ones of a stack of unknown size.

    Raises:
        UserError: the groups do not fit the number of layers.
    """
    share = options.share
    if isinstance(share, int):
        if share > layers and not part:
            raise UserError(f"residual: share {share} is more than the encoder's {layers} layers")
        return [layer // share for layer in range(layers)]
    if sum(share) != layers and not part:
        raise UserError(
            f"residual: the groups {list(share)} hold {sum(share)} layers, the encoder has {layers}"
        )
    return [group for group, size in enumerate(share) for _ in range(size)][:layers]


def sizes_of_kept(options: ResidualOptions, kept: Sequence[int]) -> list[int]:
    """Return the sizes of the groups in a stack that has the layers ``kept`` of the whole only."""
    numbers = group_numbers(options, max(kept) + 1, part=True)
    chosen = [numbers[layer] for layer in kept]
    return [chosen.count(number) for number in dict.fromkeys(chosen)]


def refuse_alone(stack: nn.Module, kept: Sequence[int]) -> None:
    """Raise UserError if of the layers of ``stack`` that share a base only one is among ``kept``.

    It would have a residual to a base that nothing shares.
    """
    groups: dict[int, set[int]] = {}
    for number, layer in stack.named_children():
        for _, _, chain in parts_with_chains(layer, "weight"):
            if part_of(chain, ResidualWeight) is not None:
                groups.setdefault(id(originals(chain)[0]), set()).add(int(number))
    for group in groups.values():
        left = group & set(kept)
        if len(left) == 1 < len(group):
            raise UserError(
                f"residual: of the layers {sorted(group)}, which share weights, {list(kept)} keeps "
                "one; choose depths that keep two of a group, or none"
            )


def share_layers(units: Sequence[Sequence[nn.Module]], options: ResidualOptions) -> None:
    """Give all units one base and each unit a residual, in place.

    A unit is a layer, or several layers that are tied and stay tied. A single unit gets no
    residual, since nothing shares its base.
    """
    rank, diagonal = (options.rank, options.diagonal) if len(units) > 1 else (0, False)
    base: Any = units[0][0]
    for unit in units:
        first: Any = unit[0]
        if any(place_of(part) == ROUNDING for part in chain_of(first, "weight") or ()):
            raise UserError("residual: this layer is in a family; nested has to be the last")
        attach(first, "weight", ResidualWeight(first.weight, rank, diagonal, options.start))
        if first.bias is not None:
            attach(first, "bias", nn.Identity())
        for name in first.parametrizations if first is not base else ():
            share(first.parametrizations[name], base.parametrizations[name])
        tie(unit)


def share_layer(layer: nn.Module, options: ResidualOptions) -> None:
    """Parametrize a single layer, which shares nothing: its weight is the base."""
    share_layers([[layer]], options)


def apply_residual(module: nn.Module, options: ResidualOptions) -> nn.Module:
    """Share the layers of every numbered stack in ``module``, in place; return ``module``.

    Raises:
        UserError: there is no stack, or groups or rank do not fit it.
    """
    found = [x for x in find_layers(module, options.sites) if _IN_STACK.match(x.name)]
    if not found:
        raise UserError(f"residual: {type(module).__name__} has no numbered stack of layers")
    groups: dict[tuple, list[list[nn.Module]]] = {}
    for unit in tied_groups(module, found):
        key = _group_key(module, unit[0], options)
        groups.setdefault(key, []).append([layer.module for layer in unit])
    for units in groups.values():
        share_layers(units, options)
    if options.form == "shared":
        _use_shared_variant(module)
    return module


def _group_key(module: nn.Module, layer: Layer, options: ResidualOptions) -> tuple:
    """Stack, group, name in the block and shape, in which layers that share must agree."""
    match = _IN_STACK.match(layer.name)
    assert match is not None
    stack, number, name = match.groups()
    size = len(list(module.get_submodule(stack).children()))
    group = group_numbers(options, size)[int(number)]
    return stack, group, name, tuple(layer.module.weight.shape), layer.module.bias is None


def _use_shared_variant(module: nn.Module) -> None:
    """Replace every parametrized layer by the one that is deployed, in place."""
    memo: Memo = {}
    replaced: dict[int, nn.Module] = {}
    layers = [m for m in module.modules() if parametrize.is_parametrized(m)]
    for layer in layers:
        found = part_of(chain_of(layer, "weight"), ResidualWeight)
        if found is not None:
            replaced[id(layer)] = found[1].deployed(layer, memo)
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = replaced.get(id(child), child)


register(
    Method(
        *("residual", ResidualOptions, apply_residual, share_layer, "arXiv 2310.02489"),
        start=start,
        place=2,
    )
)
