"""ResidualTransformer: layers that share weights, each with a small residual (arXiv 2310.02489).

The L layers of a stack are divided into groups of K. All layers of a group share every projection
weight U and its bias; layer l adds its residual: W_l = U + A_l B_l + D_l (equations 2 and 3), with
A B of rank R and D a rectangular diagonal. Normalisation and dropout stay per layer. A weight is
(o, i) here, so the paper's A (i, R) is ``down`` transposed and its B (R, o) is ``up`` transposed:
W_l = U + up down + D.

``up`` and ``diagonal`` start at zero: training starts at the sharing-only model.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
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
    value_before,
)
from espnet_ext.methods.deploy import empty_like
from espnet_ext.methods.options import WHOLE, Options, Positive, Whole
from espnet_ext.methods.protocols import Memo, Placed
from espnet_ext.methods.registry import Method, register
from espnet_ext.methods.shared_linear import SharedLinear, effective_weight
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
        form: ``train``, or ``shared``: the layers that ``deploy(model, "shared")`` writes.
    """

    method = "residual"
    share: Positive | Annotated[Sequence[Positive], Field(min_length=1)] = Field(
        3, description=_SHARE
    )
    rank: Whole = Field(16, description=WHOLE)
    diagonal: bool = Field(True, description="true or false")
    sites: tuple[str, ...] = Field(("qkv", "project", "ffn"), description="a list of sites")
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


class ResidualWeight(nn.Module):
    """Parametrization of a weight (o, i) or (o, i, 1) as shared base + low-rank + diagonal.

    It is ``Deployable``.
    """

    variant = "shared"
    place = 2  # in a chain (``methods.chains``)

    def __init__(self, weight: Tensor, rank: int, diagonal: bool):
        super().__init__()
        outputs, inputs = weight.shape[:2]
        if rank > min(outputs, inputs):
            raise UserError(
                f"residual: rank {rank} is more than a weight of {outputs} x {inputs} can have"
            )
        self.down = self.up = self.diagonal = None
        if rank:
            self.down = nn.Parameter(weight.new_empty(rank, inputs))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
            self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        if diagonal:
            self.diagonal = nn.Parameter(weight.new_zeros(min(outputs, inputs)))

    def forward(self, base: Tensor) -> Tensor:
        """Return base + up down + diagonal, of the shape of ``base``."""
        return effective_weight(base, self.down, self.up, self.diagonal)

    def deployed(self, layer: Any, memo: Memo) -> nn.Module:
        """Build the layer of the variant ``shared``, which keeps base and residual separate."""

        def shared(chain: Any, value: Tensor) -> nn.Parameter:
            trained = originals(chain)
            if id(trained[0]) not in memo:
                grad = any(tensor.requires_grad for tensor in trained)
                memo[id(trained[0])] = nn.Parameter(value.detach().clone(), requires_grad=grad)
            return memo[id(trained[0])]

        chains = layer.parametrizations
        weight = shared(chains.weight, value_before(chains.weight, self))
        bias = None if layer.bias is None else shared(chains.bias, layer.bias)
        if self.up is None and self.diagonal is None:
            plain = empty_like(layer)
            plain.weight, plain.bias = weight, bias
            return plain.train(layer.training)
        residual = (
            None if part is None else nn.Parameter(part.detach().clone())
            for part in (self.down, self.up, self.diagonal)
        )
        return SharedLinear(weight, bias, *residual).train(layer.training)


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
        attach(first, "weight", ResidualWeight(first.weight, rank, diagonal))
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


def start(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[str]:
    """Start near trained layers; see ``methods.start``.

    Of the layers W_l of a group the base is the mean U, D_l the diagonal of W_l - U, and A_l B_l
    the best approximation of rank R of what is left (truncated singular value decomposition). A
    shared bias is the mean of the biases.

    Returns:
        The part of the energy of all W_l - U that the residuals keep.
    """
    groups: dict[int, dict[int, Unit]] = {}  # of base and residual
    plain_biases = []  # of layers whose biases no other method computes
    for name, layer, chain in parts_with_chains(module, "weight"):
        found = part_of(chain, ResidualWeight)
        if found is not None:
            place = f"{prefix}{name}." if name else prefix
            units = groups.setdefault(id(originals(chain)[0]), {})
            units.setdefault(id(found[1]), Unit([], *found)).places.append(place)
            if not any(isinstance(part, Placed) for part in chain_of(layer, "bias") or ()):
                plain_biases.append(place)
    energy = kept = 0.0
    for units in groups.values():
        places = [place for unit in units.values() for place in unit.places]
        if not all(f"{place}weight" in state for place in places):
            continue
        whole, part = _start_group(list(units.values()), state)
        energy, kept = energy + whole, kept + part
        biases = [state[f"{p}bias"] for p in places if f"{p}bias" in state]
        for place in places if biases else ():
            state[f"{place}bias"] = torch.stack(biases).mean(0)
            if place in plain_biases:
                state[f"{place}parametrizations.bias.original"] = state.pop(f"{place}bias")
    if not energy:
        return []
    return [f"residual: the residuals keep {100 * kept / energy:.1f} % of what layers differ in"]


class Unit(NamedTuple):
    """A residual: the layers that have it, and its place in their chains."""

    places: list[str]  # names of the layers, with their dots
    place: int
    residual: ResidualWeight


def _start_group(units: Sequence[Unit], state: dict[str, Tensor]) -> tuple[float, float]:
    """Write base and residuals of a group into a state; return the energies: whole, and kept.

    A base that another method computes is written under the plain name, for that method.
    """
    weights = [state[f"{unit.places[0]}weight"].double() for unit in units]
    base = torch.stack(weights).mean(0)
    whole = left = 0.0
    for (names, index, residual), weight in zip(units, weights, strict=True):
        rest = (weight - base).flatten(1)
        whole += rest.square().sum().item()
        parts = {}
        if residual.diagonal is not None:
            parts["diagonal"] = rest.diagonal().clone()
            rest = torch.diagonal_scatter(rest, torch.zeros_like(parts["diagonal"]))
        if residual.up is not None and residual.down is not None:
            parts |= _low_rank(rest, residual.up, residual.down)
            rest = rest - parts["up"] @ parts["down"]
        left += rest.square().sum().item()
        for name in names:
            kind = state.pop(f"{name}weight").dtype
            state[f"{name}parametrizations.weight.original" if index == 0 else f"{name}weight"] = (
                base.to(kind)
            )
            for part, tensor in parts.items():
                state[f"{name}parametrizations.weight.{index}.{part}"] = tensor.to(kind)
    return whole, whole - left


def _low_rank(rest: Tensor, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """The factors, as large as ``up`` and ``down``, whose product is nearest to ``rest``."""
    if not rest.any():  # of zeros too they would have no gradient
        return {"up": up.detach().to(rest), "down": down.detach().to(rest)}
    rank = len(down)
    left_vectors, sizes, right_vectors = torch.linalg.svd(rest, full_matrices=False)
    root = sizes[:rank].sqrt()
    return {"up": left_vectors[:, :rank] * root, "down": root.unsqueeze(1) * right_vectors[:rank]}


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
