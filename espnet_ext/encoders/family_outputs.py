"""Nested families in ESPnet's encoders: outputs of all members, and configs of single members."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from espnet_ext.methods.nested_options import Member, NestedOptions, parse_name
from espnet_ext.methods.registry import METHODS
from espnet_ext.methods.residual import ResidualOptions, sizes_of_kept
from espnet_ext.methods.residual_weight import ResidualWeight


def encoder_outputs(
    encoder: Any, exits: Mapping[Member, Any], members: Sequence[Member]
) -> dict[Member, Tensor]:
    """Return the encoder outputs (batch, frames, width) of members, each as if it ran alone.

    Args:
        encoder: ESPnet's, after a pass inside ``NestedStack.running``.
        exits: what ``running`` yielded: the result of each member's last layer.
        members: those wanted.
    """
    norm = getattr(encoder, "after_norm", None)  # pre-norm encoders have one
    found = {}
    for member in members:
        output: Any = exits[member]
        while isinstance(output, tuple):  # (x, mask), and x may be (x, positions)
            output = output[0]
        found[member] = output if norm is None else norm(output)
    return found


def plain_conf(conf: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Return the ``encoder_conf`` of the member ``variant`` alone, from that of its family.

    ``merged`` is the largest member. The result has only ESPnet's options, which stock ESPnet
    accepts; with ``norm: layer``, which it lacks, also a section ``nested`` with ``form: plain``.
    """
    member = None if variant == "merged" else parse_name(variant)
    found = _without_methods(conf, None if member is None else member.layers, member)
    if found.keys() & {"path", "architecture"}:  # encoder: stack; its model states the sizes
        return found
    if NestedOptions.parse(conf["nested"]).norm == "layer":
        found["nested"] = {"norm": "layer", "form": "plain"}
    if member is None:
        return found
    found["num_blocks"] = len(member.layers)
    if member.width is not None:
        found["linear_units"] = member.width
    rates = found.get("stochastic_depth_rate")
    if isinstance(rates, list | tuple):
        found["stochastic_depth_rate"] = [rates[layer] for layer in member.layers]
    return found


def _without_methods(
    conf: Mapping[str, Any], layers: Sequence[int] | None, member: Member | None
) -> dict[str, Any]:
    """A section of a family's config without methods, but for what a member's layers share.

    Args:
        conf: of the family's encoder or decoder.
        layers: of the member in it; None: all.
        member: None: the merged model, which shares nothing.
    """
    found = {key: value for key, value in conf.items() if key not in METHODS}
    section = conf.get("residual")
    if section is not None and member is not None:
        options = ResidualOptions.parse(section)
        sizes = options.share if layers is None else sizes_of_kept(options, layers)
        found["residual"] = {**section, "share": sizes, "form": ResidualWeight.variant}
    return found


def plain_decoder_conf(conf: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Return the ``decoder_conf`` of the member ``variant`` alone, from that of its family."""
    member = None if variant == "merged" else parse_name(variant)
    found = _without_methods(conf, None if member is None else member.decoder, member)
    if member is None or member.decoder is None or found.keys() & {"path", "architecture"}:
        return found
    found["num_blocks"] = len(member.decoder)
    if member.decoder_width is not None:
        found["linear_units"] = member.decoder_width
    return found
