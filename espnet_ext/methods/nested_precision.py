"""The weights that the precision of a member concerns: their integers, and the bits they need."""

from typing import Any

from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.methods.nested import find_stack, is_matrix_layer, nested_stack
from espnet_ext.methods.nested_options import find_member


def quantised_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weights (o, ...) that a precision concerns, by their name in a plain encoder.

    They are those of the linear and convolutional layers of the blocks, each once however often it
    is used. Everything outside the blocks, biases, normalisations and the biases of relative
    positions stay at 32 bits, as in the paper (arXiv 2406.10160). ``encoder`` is a plain one, or
    the training form of a family, whose weights are those of the selected member.
    """
    prefix, stack = find_stack(encoder)
    return {
        f"{prefix}.{name}.weight": layer.weight
        for name, layer in stack.named_modules()
        if is_matrix_layer(layer)
    }


def integer_weights(encoder: nn.Module, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return integers (int8) and scales of the member ``name`` of a family at 8, 4 or 2 bits.

    Keys are the names in the state dict of ``deploy(encoder, name)``, whose weights are the
    products to the last bit. A scale has the shape () or (o, 1, ...).
    """
    stack = nested_stack(encoder)
    if stack is None:
        raise UserError("this encoder holds no family of sub-networks")
    prefix = find_stack(encoder)[0]
    found = {}
    with stack.as_member(name) as member:
        if member.bits == 32:
            raise UserError(f"nested: {name} is at 32 bits; it has no integers")
        for place, layer in enumerate(member.layers):
            for inner, part in stack.get_submodule(str(layer)).named_modules():
                if is_matrix_layer(part):
                    weights: Any = part.parametrizations["weight"]
                    key = f"{prefix}.{place}.{inner}.weight"
                    found[key] = weights[0].integers(weights.original)
    return found


def block_bits(encoder: nn.Module, bits: int) -> int:
    """Count the bits of a plain encoder's blocks: ``quantised_weights`` at ``bits``, rest at 32.

    As the paper counts (arXiv 2406.10160), scales are left out.
    """
    _, stack = find_stack(encoder)
    every = sum(p.numel() for p in stack.parameters())
    rounded = sum(weight.numel() for weight in quantised_weights(encoder).values())
    return rounded * bits + (every - rounded) * 32


def compression(encoder: nn.Module, plain: nn.Module, name: str) -> float | None:
    """Return the bits of the largest network's blocks at 32 bits over those of a member's blocks.

    Counted as in the paper, see ``block_bits``: 12.83 for 12 layers of 256 with feed-forward
    networks of 1,024 at 4 bits, from a Conformer of 2,048 (arXiv 2406.10160 gives 12.8). It is not
    a ratio of file sizes. None if ``encoder`` is not the training form of a family; ``plain`` is
    ``deploy(encoder, name)``.
    """
    stack = nested_stack(encoder)
    if stack is None:
        return None
    parameters = stack.named_parameters()
    whole = 32 * sum(p.numel() for parameter, p in parameters if ".scales." not in parameter)
    return whole / block_bits(plain, find_member(stack.family, name).bits)
