"""Members of a family in a trained model: which there are, their packed states and sizes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from espnet_ext.methods.nested import integer_weights, nested_stack
from espnet_ext.methods.nested_options import Member, find_member
from espnet_ext.methods.packing import Quantised, quantised_state
from espnet_ext.tasks.checkpoint import file_state, serialised
from espnet_ext.tasks.packed_file import State, dequantised, member_bytes


def member_of(model: nn.Module, variant: str) -> Member | None:
    """The member of the model's family that ``variant`` names; None for a form that is none.

    ``merged`` is none: it is the largest network as stock ESPnet loads it, whatever its bits.
    """
    stack = nested_stack(model)
    if stack is None or variant == "merged":
        return None
    return find_member(stack.family, variant)


@contextlib.contextmanager
def computing(model: nn.Module, variant: str) -> Iterator[None]:
    """Inside, a family in its training form computes what ``variant`` is deployed from."""
    stack = nested_stack(model)
    with stack.as_member(variant) if stack is not None else contextlib.nullcontext():
        yield


def packed_state(trained: nn.Module, deployed: nn.Module, variant: str) -> State | None:
    """The state of a deployed member with integers in it; None for a form that is not packed.

    Args:
        trained: the training form.
        deployed: what ``deploy(trained, variant)`` returned.
        variant: name of the form.

    Raises:
        UserError: NaN or infinite values in a weight or scale.
    """
    member = member_of(trained, variant)
    if member is None or member.bits == 32:
        return None
    encoder: Any = trained.encoder
    found = integer_weights(encoder, variant)
    weights = {f"encoder.{n}": Quantised(*parts, member.bits) for n, parts in found.items()}
    state = quantised_state(deployed, weights)
    plain = deployed.state_dict()
    for name, tensor in dequantised(state).items():
        if not torch.equal(tensor, plain[name]):
            raise RuntimeError(f"{name} of {variant} is not the product of its integers and scale")
    return state


def file_bytes(trained: nn.Module, deployed: nn.Module, variant: str) -> int:
    """Size of the weights' file that stage 5 writes for a deployed form."""
    packed = packed_state(trained, deployed, variant)
    if packed is not None:
        return len(member_bytes(packed))
    return len(serialised(file_state(deployed, variant)))
