"""Nested sub-networks of one parameter set: depth, width and precision (arXiv 2406.10160)."""

from torch import Tensor, nn

from espnet_ext.errors import UserError


def find_stack(module: nn.Module) -> tuple[str, nn.Module]:
    """Name and container of the numbered stack of layers in ``module``.

    Raises:
        UserError: there is none, or more than one.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if name.rpartition(".")[2] in ("encoders", "layers") and not inside:
            names = [key for key, _ in child.named_children()]
            if names and all(key.isdecimal() for key in names):
                found.append((name, child))
    if len(found) != 1:
        kind = type(module).__name__
        raise UserError(f"nested: {kind} has {len(found)} stacks of layers, not one")
    return found[0]


def quantised_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights that a precision concerns: of all linear layers and convolutions of the blocks.

    What stands before and behind the blocks, biases, normalisations and relative positions'
    biases stay at 32 bits, as the paper counts (arXiv 2406.10160; see ``block_bits``).

    Args:
        encoder: a plain one, or the training form of a family.

    Returns:
        Weights (o, ...) by the name that they have in a plain encoder's state dict, each once
        however often it is used. Those of a training form are of the member that it computes.
    """
    name, stack = find_stack(encoder)
    return {
        f"{name}.{inner}.weight": layer.weight
        for inner, layer in stack.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    }
