"""The weights that the precision of a member concerns: their integers, and the bits they need."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import part_of, value_before
from espnet_ext.methods.codes import Coded
from espnet_ext.methods.nested import find_stack, nested_stack
from espnet_ext.methods.nested_layers import NestedWeight
from espnet_ext.methods.nested_model import containers
from espnet_ext.methods.nested_options import find_member
from espnet_ext.methods.nested_table import NestedTable
from espnet_ext.methods.positions import NestedPositions, Sinusoids
from espnet_ext.methods.sites import is_matrix_layer

# In names of the factors of residuals: deployed, they are tensors of the layer.
_IN_RESIDUAL = re.compile(r"\.parametrizations\.weight\.\d+(?=\.(up|down)$)")


def quantised_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weights (o, ...) that a precision concerns, by their name in a plain encoder.

    They are those of the linear and convolutional layers of the blocks, each once however often it
    is used. Everything outside the blocks, biases, normalisations and the biases of relative
    positions stay at 32 bits (arXiv 2406.10160 does not say). ``encoder`` is a plain one, or the
    training model of a family, whose weights are those of the selected member.
    """
    prefix, stack = find_stack(encoder)
    return {
        f"{prefix}.{name}.weight": layer.weight
        for name, layer in stack.named_modules()
        if is_matrix_layer(layer)
    }


class Packed(NamedTuple):
    """A weight of a member as files hold it.

    Attributes:
        ints: integers (o, ...), int8.
        scale: of the integers, (), (o, 1, ...) or of groups.
        bits: of the integers.
    """

    ints: Tensor
    scale: Tensor
    bits: int


def packed_weights(model: nn.Module, name: str) -> dict[str, Packed | Coded | Sinusoids]:
    """Return the packed weights of the member ``name`` of a family, at fewer than 32 bits.

    Keys are the names in the state dict of ``deploy(model, name)``, whose weights equal
    the packed ones, to the last bit.

    Args:
        model: an encoder, or a model around it.
        name: of the member.

    Raises:
        UserError: there is no family, or the member has 32 bits.
    """
    stack = nested_stack(model)
    if stack is None:
        raise UserError("this encoder holds no family of sub-networks")
    found = {}
    with stack.as_member(name) as member:
        if member.bits == 32:
            raise UserError(f"nested: {name} is at 32 bits; it has no integers")
        kept = {id(container): layers for container, layers in containers(model, member)}
        places = {place: kept[id(m)] for place, m in model.named_modules() if id(m) in kept}
        for outer, weight in _packed_inside(model):
            place = next((p for p in places if outer.startswith(f"{p}.")), None)
            if place is None:
                found[outer] = weight
                continue
            number, _, inner = outer.removeprefix(f"{place}.").partition(".")
            if int(number) in places[place]:  # layers of the deployed model are numbered anew
                found[f"{place}.{places[place].index(int(number))}.{inner}"] = weight
    return found


def _packed_inside(module: nn.Module) -> Iterator[tuple[str, Packed | Coded | Sinusoids]]:
    """Names and values of the rounded weights in a module, of the selected member."""
    for place, layer in module.named_modules():
        chains: Any = getattr(layer, "parametrizations", {})
        for tensor, chain in chains.items():
            name = _IN_RESIDUAL.sub("", f"{place}.{tensor}")
            found = part_of(chain, (NestedWeight, NestedTable, NestedPositions))
            if found is None:
                continue
            part = found[1]
            value = value_before(chain, part)
            if isinstance(part, NestedWeight):
                yield name, Packed(*part.integers(value), part.bits)
            elif isinstance(part, NestedTable):
                yield name, part.coded(value)
            else:
                yield name, Sinusoids(tuple(value.shape))


def block_bits(encoder: nn.Module, bits: int) -> int:
    """Count the bits of a plain encoder's blocks: ``quantised_weights`` at ``bits``, rest at 32.

    Scales are left out.
    """
    _, stack = find_stack(encoder)
    every = sum(p.numel() for p in stack.parameters())
    rounded = sum(weight.numel() for weight in quantised_weights(encoder).values())
    return rounded * bits + (every - rounded) * 32


def compression(encoder: nn.Module, plain: nn.Module, name: str) -> float | None:
    """Return the bits of the largest network's blocks at 32 bits over those of a member's blocks.

    See ``block_bits``: 12.83 for 12 layers of 256 with feed-forward
    networks of 1,024 at 4 bits, from a Conformer of 2,048 (arXiv 2406.10160 gives 12.8). It is not
    a ratio of file sizes. None if ``encoder`` is not the training model of a family, or rounds by
    deviation, for codes without a fixed number of bits; ``plain`` is ``deploy(encoder, name)``.
    """
    stack = nested_stack(encoder)
    if stack is None or stack.options.scale == "deviation":
        return None
    parameters = stack.named_parameters()
    whole = 32 * sum(p.numel() for parameter, p in parameters if ".scales." not in parameter)
    return whole / block_bits(plain, find_member(stack.family, name).bits)
