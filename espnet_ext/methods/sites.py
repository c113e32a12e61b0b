"""Which sub-layers of an encoder a method touches.

A layer belongs to a site by the name that its parent gives it. The names are those of
ESPnet (``feed_forward.w_1``, ``self_attn.linear_q``), Fairseq/Transformers (``q_proj``,
``fc1``, ``intermediate_dense``) and torch (``linear1``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError, nearest

# The five sites compared by HRF (arXiv 2411.09339), plus the pointwise convolutions.
_PATTERNS = {
    "ffn": r"(^|\.)(w_1|w_2|fc1|fc2|linear1|linear2|intermediate_dense|output_dense)$",
    "qkv": r"(^|\.)(linear_[qkv]|[qkv]_proj|query|key|value)$",
    "project": r"(^|\.)(linear_out|out_proj)$",
    "conv": r"(^|\.)pointwise_conv\d*$",
}
SITES = (*_PATTERNS, "cls", "all")
# Layers that are linear between non-linearities, but not one matrix for each frame: convolutions
# with a kernel wider than 1, and the weights of recurrent layers. "all" does not take them.
BEYOND = ("wide_conv", "recurrent")


@dataclass(frozen=True)
class Layer:
    """A layer found in a module."""

    name: str  # dotted name inside the module that was searched
    module: nn.Module
    site: str  # one of SITES or BEYOND, or "other" (taken by "all" only)


def check_sites(sites: Iterable[str], beyond: bool = False) -> tuple[str, ...]:
    """Return ``sites`` as a tuple.

    Args:
        sites: names.
        beyond: the method that asks can do BEYOND too.

    Raises:
        UserError: a name is not a site, or none is given.
    """
    known = (*SITES, *BEYOND) if beyond else SITES
    if not isinstance(sites, str | list | tuple | set | frozenset):
        raise UserError(f"sites must be a list of names, not {sites!r}")
    chosen = (sites,) if isinstance(sites, str) else tuple(sites)
    if not chosen:
        raise UserError(f"no site chosen; known are: {', '.join(known)}")
    for site in chosen:
        if site not in known:
            raise UserError(f"unknown site {nearest(str(site), known)}")
    return chosen


def feed_forward_role(name: str) -> str | None:
    """``up`` for the layer into the inner units of a feed-forward network, ``down`` for the one
    out of them, by its dotted name; None for any other."""
    if not re.search(_PATTERNS["ffn"], name):
        return None
    into = ("w_1", "fc1", "linear1", "intermediate_dense")
    return "up" if name.rpartition(".")[2] in into else "down"


def is_linear(module: nn.Module) -> bool:
    """True for a linear layer and for a convolution that is one (width 1, one group)."""
    if isinstance(module, nn.Linear):
        return True
    return (
        isinstance(module, nn.Conv1d)
        and module.kernel_size == (1,)
        and module.groups == 1
        and module.stride == (1,)
        and module.padding in ((0,), "valid")
    )


def is_wide_convolution(module: nn.Module) -> bool:
    """True for a convolution that sees more than one frame, or a grouped or strided one."""
    return isinstance(module, nn.Conv1d | nn.Conv2d) and not is_linear(module)


def find_layers(module: nn.Module, sites: Iterable[str]) -> list[Layer]:
    """List the layers of ``module`` at ``sites``, each once however often it is used.

    Raises:
        UserError: a site is unknown, or none of the sites but ``cls`` has a layer here
            (``cls`` is the head, outside the encoder).
    """
    chosen = check_sites(sites, beyond=True)
    found = []
    for name, child in module.named_modules():
        site = None
        if is_linear(child):
            site = next((s for s, p in _PATTERNS.items() if re.search(p, name)), "other")
        elif is_wide_convolution(child):
            site = "wide_conv"
        elif isinstance(child, nn.RNNBase):
            site = "recurrent"
        if site in chosen or (site is not None and site not in BEYOND and "all" in chosen):
            found.append(Layer(name, child, site))
    for site in set(chosen) - {"cls", "all"}:
        if not any(layer.site == site for layer in found):
            raise UserError(f"{type(module).__name__} has no layer at site '{site}'")
    return found


def tied_groups(module: nn.Module, layers: Iterable[Layer]) -> list[list[Layer]]:
    """Group ``layers`` of ``module`` by weight: tied layers together, any other alone.

    A method gives the layers of one group the same trained tensors, so that they stay tied.

    Raises:
        UserError: a layer has a method already, or shares a tensor with a part of ``module``
            that is not in its group; a method would break that tie without a word.
    """
    groups: dict[tuple[int, ...], list[Layer]] = {}
    for layer in layers:
        if parametrize.is_parametrized(layer.module):
            raise UserError(
                f"{layer.name or 'this layer'} already has a method; one method a layer"
            )
        key = tuple(id(parameter) for parameter in layer.module._parameters.values())
        groups.setdefault(key, []).append(layer)
    owners: dict[int, set[str]] = {}
    for name, child in module.named_modules():
        for parameter in child.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    for group in groups.values():
        members = {layer.name for layer in group}
        for parameter in group[0].module.parameters(recurse=False):
            for other in sorted(owners[id(parameter)] - members):
                raise UserError(
                    f"{group[0].name} and {other} share a tensor but not weight and bias both, "
                    "or only one is at the chosen sites; choose sites that take neither"
                )
    return list(groups.values())
