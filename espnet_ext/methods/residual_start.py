"""ResidualTransformer's start from trained layers: a base, and residuals near what is left."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_ext.methods.chains import chain_of, originals, part_of, parts_with_chains
from espnet_ext.methods.protocols import Placed
from espnet_ext.methods.residual_weight import ResidualWeight


def start(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[str]:
    """Start near trained layers; see ``methods.start``.

    Of the layers W_l of a group the base is the mean U, D_l the diagonal of W_l - U, and A_l B_l
    the best approximation of rank R of what is left (truncated singular value decomposition). A
    shared bias is the mean of the biases. With ``start: first`` U and the bias are those of the
    first layer, and the residuals are left at zero.

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
            state[f"{place}bias"] = _base(biases, units.values())
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
    base = _base(weights, units)
    whole = left = 0.0
    for (names, index, residual), weight in zip(units, weights, strict=True):
        rest = (weight - base).flatten(1)
        whole += rest.square().sum().item()
        parts, rest = _nearest(residual, rest)
        left += rest.square().sum().item()
        for name in names:
            kind = state.pop(f"{name}weight").dtype
            state[f"{name}parametrizations.weight.original" if index == 0 else f"{name}weight"] = (
                base.to(kind)
            )
            for part, tensor in parts.items():
                state[f"{name}parametrizations.weight.{index}.{part}"] = tensor.to(kind)
    return whole, whole - left


def _base(layers: Sequence[Tensor], units: Iterable[Unit]) -> Tensor:
    """What the layers of a group start from, of one parameter of each."""
    first = next(iter(units)).residual.start == "first"
    return layers[0] if first else torch.stack(list(layers)).mean(0)


def _nearest(residual: ResidualWeight, rest: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The parameters of a residual that starts near ``rest``, and what it leaves of that."""
    if residual.start == "first":
        return _fitted(residual, torch.zeros_like(rest))[0], rest
    return _fitted(residual, rest)


def _fitted(residual: ResidualWeight, rest: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The parameters of a residual nearest to ``rest``, and what they leave of that."""
    parts: dict[str, Tensor] = {}
    if residual.diagonal is not None:
        parts["diagonal"] = rest.diagonal().clone()
        rest = torch.diagonal_scatter(rest, torch.zeros_like(parts["diagonal"]))
    if residual.up is not None and residual.down is not None:
        parts |= _low_rank(rest, residual.up, residual.down)
        rest = rest - parts["up"] @ parts["down"]
    return parts, rest


def _low_rank(rest: Tensor, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """The factors, as large as ``up`` and ``down``, whose product is nearest to ``rest``."""
    if not rest.any():  # with both at zero neither would have a gradient
        return {"up": torch.zeros_like(up).to(rest), "down": down.detach().to(rest)}
    rank = len(down)
    left_vectors, sizes, right_vectors = torch.linalg.svd(rest, full_matrices=False)
    root = sizes[:rank].sqrt()
    return {"up": left_vectors[:, :rank] * root, "down": root.unsqueeze(1) * right_vectors[:rank]}
