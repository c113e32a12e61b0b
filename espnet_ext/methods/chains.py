"""Several methods on one layer: its weight is computed by a chain of parametrizations.

Their order is that of the attribute ``place`` of their classes: a product of factors comes first
(HRF, 0), then it is rounded and cut (nested, 1), then residuals are added to what layers share
(residual, 2): W_l = round(W_n ... W_1) + A_l B_l + D_l.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.protocols import Placed

ROUNDING, ADDED = 1, 2  # the places of families and of residuals
_LAST = 3  # of parametrizations that have no place, which change nothing


def chain_of(layer: nn.Module, name: str) -> Any:
    """The parametrizations of a tensor of a layer; None if there are none."""
    chains: Any = getattr(layer, "parametrizations", {})
    return chains[name] if name in chains else None  # noqa: SIM401


def originals(chain: Any) -> list[Tensor]:
    """The trained tensors that a chain starts from."""
    if chain.is_tensor:
        return [chain.original]
    return [getattr(chain, f"original{number}") for number in range(chain.ntensors)]


def trained_tensors(layer: nn.Module) -> list[Tensor]:
    """The parameters of a layer, and the tensors that its parametrized ones come from."""
    found = [p for p in layer._parameters.values() if p is not None]
    chains: Any = getattr(layer, "parametrizations", {})
    return found + [tensor for chain in chains.values() for tensor in originals(chain)]


def part_of(chain: Any, kind: type | tuple[type, ...]) -> tuple[int, Any] | None:
    """Place and parametrization of a kind in a chain; None if it has none."""
    return next(((k, part) for k, part in enumerate(chain) if isinstance(part, kind)), None)


def value_before(chain: Any, part: nn.Module) -> Tensor:
    """What a chain gives to one of its parts."""
    value: Any = originals(chain)
    for other in chain:
        if other is part:
            break
        value = [other(*value)]
    return value[0]


def attach(layer: nn.Module, name: str, part: nn.Module) -> None:
    """Add a parametrization to a tensor of a layer, at its place in the chain.

    Raises:
        UserError: the layer has this method already.
    """
    chain, place = chain_of(layer, name), place_of(part)
    places = [place_of(other) for other in chain or ()]
    if place in places and place != _LAST:
        raise UserError("this layer already has a method of this kind; it can have each once")
    # unsafe: torch's check would compute every weight once more.
    parametrize.register_parametrization(layer, name, part, unsafe=True)
    chain = chain_of(layer, name)
    for index, other in enumerate(sorted(chain, key=place_of)):
        chain[index] = other


def attach_to_all(layers: Sequence[nn.Module], name: str, part: nn.Module) -> None:
    """Add one parametrization to layers whose trained tensors are the same.

    Tied layers have one chain, and layers that share a base one each.
    """
    first = layers[0]
    attached = {id(chain_of(first, name))}
    chained = [layer for layer in layers[1:] if chain_of(layer, name) is not None]
    attach(first, name, part)
    for layer in chained:
        if id(chain_of(layer, name)) not in attached:
            attached.add(id(chain_of(layer, name)))
            attach(layer, name, part)


def share(chain: Any, base: Any) -> None:
    """Give a chain all that comes before its last part from another one: tensors and parts."""
    names = ["original"] if base.is_tensor else [f"original{n}" for n in range(base.ntensors)]
    for name in names:
        setattr(chain, name, getattr(base, name))
    for index in range(len(base) - 1):
        chain[index] = base[index]


def parts_with_chains(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, Any]]:
    """Names, layers and chains of all layers of a module that have a chain for a tensor."""
    for place, layer in module.named_modules():
        chain = chain_of(layer, name)
        if chain is not None:
            yield place, layer, chain


def place_of(part: nn.Module) -> int:
    """The place of a parametrization in a chain."""
    return part.place if isinstance(part, Placed) else _LAST
