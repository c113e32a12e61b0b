"""Nested families in ESPnet's encoders: outputs of all members, and configs of each alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from espnet_ext.methods.nested_options import Member, NestedOptions, parse_name
from espnet_ext.methods.registry import METHODS


def encoder_outputs(
    encoder: Any, exits: Mapping[Member, Any], chosen: Sequence[Member]
) -> dict[Member, Tensor]:
    """Outputs (batch, frames, width) of members, as each alone would return its own.

    Args:
        encoder: ESPnet's, after a pass inside ``NestedStack.running``.
        exits: what that yielded: what the last layer of each member returned.
        chosen: the members.
    """
    norm = getattr(encoder, "after_norm", None)  # pre-norm encoders have one
    found = {}
    for member in chosen:
        output: Any = exits[member]
        while isinstance(output, tuple):  # (x, mask), and x may be (x, positions)
            output = output[0]
        found[member] = output if norm is None else norm(output)
    return found


def plain_conf(conf: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """``encoder_conf`` that builds the member ``variant`` of a family alone.

    Args:
        conf: of the family, ``nested`` among ESPnet's own keys.
        variant: a member's name, or ``merged``, the largest.

    Returns:
        Without ``nested``, so that stock ESPnet takes it; with ``norm: layer``, which that lacks,
        it stays, in its form ``plain``.
    """
    found = {key: value for key, value in conf.items() if key != "nested"}
    if found.keys() & {"path", "architecture"}:  # encoder: stack, whose sizes the model tells
        return found
    options: NestedOptions = METHODS["nested"].parse(conf["nested"])
    if options.norm == "layer":
        found["nested"] = {"norm": "layer", "form": "plain"}
    if variant == "merged":
        return found
    member = parse_name(variant)
    found["num_blocks"] = len(member.layers)
    if member.width is not None:
        found["linear_units"] = member.width
    rates = found.get("stochastic_depth_rate")
    if isinstance(rates, list | tuple):
        found["stochastic_depth_rate"] = [rates[layer] for layer in member.layers]
    return found
