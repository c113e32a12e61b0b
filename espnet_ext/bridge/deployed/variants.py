"""Variants with packed weights: members of families, and merged models rounded afterwards.

A variant is one of ``methods.deploy`` (merged, or a member such as 12L-1024-4b), or a merged
model whose weights are rounded after training. ``merged+4b``: the weights that a family rounds in
training, with one scale by maximum for each output channel. ``whole+4b``: every matrix of the
model, decoder and embeddings too, with a scale for each group of 32 inputs.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from espnet_ext.bridge.checkpoint import deployed_bytes
from espnet_ext.errors import UserError
from espnet_ext.formats.bits import Quantised, quantised_state
from espnet_ext.formats.packed import State, dequantised, member_bytes
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import find_stack, nested_stack
from espnet_ext.methods.nested_options import Member, find_member
from espnet_ext.methods.nested_precision import Packed, packed_weights, quantised_weights
from espnet_ext.methods.quantise import BITS, grouped_integers, integers, largest_integer
from espnet_ext.methods.verify import exact_products

_AFTERWARDS = re.compile(r"(merged|whole)\+(\d+)b")
_PLACES = re.compile("position|relative_bias")
SMALL = 4096  # numbers of a matrix that is not worth rounding


class DeployedVariant(NamedTuple):
    """A model that was deployed as one of its variants."""

    module: nn.Module  # plain; its weights are integers times scale where the variant is packed
    state: State | None  # the content of its file; None for variants that are not packed


def deploy_variant(trained: nn.Module, variant: str) -> DeployedVariant:
    """Deploy a model in evaluation mode.

    Raises:
        UserError: an unknown variant, bits that are not offered, weights that are not finite.
    """
    name, bits = split_variant(variant)
    if bits is None:
        module = deploy(trained, name)
        return DeployedVariant(module, packed_state(trained, module, name))
    _refuse_rounding(trained, variant, bits)
    module = deploy(trained, name)
    whole, weights = variant.startswith("whole"), {}
    encoder: Any = module.encoder
    blocks = {} if whole else quantised_weights(encoder)
    chosen = matrices(module) if whole else {f"encoder.{n}": w for n, w in blocks.items()}
    for key, weight in chosen.items():
        found = grouped_integers(weight, bits) if whole else integers(weight, bits)
        made = weights[key] = Quantised(*found, bits)
        with torch.no_grad():
            weight.copy_(made.dequantised())
    return DeployedVariant(module, quantised_state(module, weights))


def _refuse_rounding(trained: nn.Module, variant: str, bits: int) -> None:
    """Raise UserError if the model has no such variant; before any of it is copied."""
    stack = nested_stack(trained)
    if stack is not None and stack.family[0].bits != 32:
        raise UserError(f"{variant}: {stack.family[0].name} is rounded already in training")
    if variant not in rounded_afterwards(trained):
        raise UserError(f"{variant}: this encoder is not one stack of layers; use whole+{bits}b")


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a plain model by name, each once: layers, convolutions, embeddings.

    Tables of positions are none: they are small, and every frame depends on them.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and parameter.numel() >= SMALL and not _PLACES.search(name)
    }


def split_variant(variant: str) -> tuple[str, int | None]:
    """Split a variant into the one that is deployed and the bits it is rounded to, if any.

    Raises:
        UserError: bits that are not offered.
    """
    found = _AFTERWARDS.fullmatch(variant)
    if found is None:
        return variant, None
    bits = int(found[2])
    largest_integer(bits)  # refuses others
    return "merged", bits


def rounded_afterwards(trained: Any) -> list[str]:
    """Names of the variants that round the merged model."""
    stack = nested_stack(trained)
    if stack is not None and stack.family[0].bits != 32:
        return []
    whole = [f"whole+{bits}b" for bits in BITS if bits != 32]
    try:
        find_stack(trained.encoder)
    except UserError:
        return whole
    return [f"merged+{bits}b" for bits in BITS if bits != 32] + whole


def member_of(model: nn.Module, variant: str) -> Member | None:
    """The member of the model's family that ``variant`` names; None if it names no member.

    ``merged`` names none: it is the largest network, which stock ESPnet loads, whatever its bits.
    """
    stack = nested_stack(model)
    if stack is None or variant == "merged":
        return None
    return find_member(stack.family, variant)


@contextlib.contextmanager
def computing(model: nn.Module, variant: str) -> Iterator[None]:
    """Inside the block, a training model computes ``variant``, with the products of ``deploy``."""
    stack = nested_stack(model)
    member = stack.as_member(variant) if stack is not None else contextlib.nullcontext()
    with member, exact_products(model):
        yield


def packed_state(trained: nn.Module, deployed: nn.Module, variant: str) -> State | None:
    """The state of a packed member, with integers; None for a variant that is not packed.

    Args:
        trained: the training model.
        deployed: what ``deploy(trained, variant)`` returned.
        variant: its name.

    Raises:
        UserError: NaN or infinite values in a weight or scale.
    """
    member = member_of(trained, variant)
    if member is None or member.bits == 32:
        return None
    weights = {
        name: Quantised(*one) if isinstance(one, Packed) else one
        for name, one in packed_weights(trained, variant).items()
    }
    state = quantised_state(deployed, weights)
    plain = deployed.state_dict()
    for name, tensor in dequantised(state).items():
        if not torch.equal(tensor, plain[name]):
            raise RuntimeError(f"{name} of {variant} is not the product of its integers and scale")
    return state


def file_bytes(made: DeployedVariant, variant: str, coded: bool = False) -> int:
    """Size of the file of weights that stage 5 writes for a variant.

    ``coded``: ``recipe: huffman``.
    """
    if made.state is not None:
        return len(member_bytes(made.state, coded))
    return len(deployed_bytes(made.module, variant))
