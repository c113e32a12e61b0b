"""Which layers of an encoder a method compresses.

A layer belongs to a site by the name that its parent gives it. The names are those of
ESPnet (``feed_forward.w_1``, ``self_attn.linear_q``), Fairseq/Transformers (``q_proj``,
``fc1``, ``intermediate_dense``) and torch (``linear1``).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.chains import chain_of, trained_tensors

# The five sites compared by HRF (arXiv 2411.09339), plus the pointwise convolutions.
_PATTERNS = {
    "ffn": r"(^|\.)(w_1|w_2|fc1|fc2|linear1|linear2|intermediate_dense|output_dense)$",
    "qkv": r"(^|\.)(linear_[qkv]|[qkv]_proj|query|key|value)$",
    "project": r"(^|\.)(linear_out|out_proj)$",
    "conv": r"(^|\.)pointwise_conv\d*$",
}
SITES = (*_PATTERNS, "cls", "all")
# What the paper calls all: its four sites together. Our "all" includes every linear layer.
PAPER = "paper"
_PAPER_SITES = ("ffn", "qkv", "project", "cls")
# Layers that are linear between non-linearities, but not one matrix for each frame: convolutions
# with a kernel wider than 1, and recurrent layers. "all" does not include them.
EXTRA_SITES = ("wide_conv", "recurrent")


@dataclass(frozen=True)
class Layer:
    """A layer found in a module."""

    name: str  # dotted name inside the module that was searched
    module: nn.Module
    site: str  # one of SITES or EXTRA_SITES, or "other" (part of "all" only)


def check_sites(sites: Any, extra: bool = False) -> tuple[str, ...]:
    """Return ``sites``, one name or several, as a tuple; ``extra`` accepts EXTRA_SITES too.

    ``paper`` means the four sites of HRF's paper.

    Raises:
        UserError: a name is not a site, or none is given.
    """
    known = (*SITES, PAPER, *EXTRA_SITES) if extra else (*SITES, PAPER)
    chosen = (sites,) if isinstance(sites, str) else sites
    if not isinstance(chosen, list | tuple | set | frozenset):
        raise UserError(f"sites must be a list of names, not {sites!r}")
    if not chosen:
        raise UserError(f"no site chosen; known are: {', '.join(known)}")
    for site in chosen:
        if site not in known:
            raise UserError(f"unknown site {nearest(str(site), known)}")
    named = [part for site in chosen for part in (_PAPER_SITES if site == PAPER else (site,))]
    return tuple(dict.fromkeys(named))


def feed_forward_role(name: str) -> str | None:
    """Return the role of a layer in a feed-forward network, by its dotted name.

    ``up`` for the layer into the inner units, ``down`` for the one out of them, else None.
    """
    if not re.search(_PATTERNS["ffn"], name):
        return None
    into = ("w_1", "fc1", "linear1", "intermediate_dense")
    return "up" if name.rpartition(".")[2] in into else "down"


def is_matrix_layer(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv1d | nn.Conv2d]:
    """True for the layers whose weights a precision concerns."""
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)


def is_linear(module: nn.Module) -> bool:
    """True for a linear layer and for a convolution that is one (width 1, one group)."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv1d)
        and module.kernel_size == module.stride == (1,)
        and module.groups == 1
        and module.padding in ((0,), "valid")
    )


def find_layers(module: nn.Module, sites: Iterable[str]) -> list[Layer]:
    """List the layers of ``module`` at ``sites``, each once however often it is used.

    Raises:
        UserError: a site is unknown, or a site other than ``cls`` and ``all`` has no layer here
            (``cls`` is the head, outside the encoder).
    """
    chosen = check_sites(sites, extra=True)
    found = []
    for name, child in module.named_modules():
        if is_linear(child):
            site = next((s for s, p in _PATTERNS.items() if re.search(p, name)), "other")
        elif isinstance(child, nn.Conv1d | nn.Conv2d):
            site = "wide_conv"
        elif isinstance(child, nn.RNNBase):
            site = "recurrent"
        else:
            continue
        if site in chosen or ("all" in chosen and site not in EXTRA_SITES):
            found.append(Layer(name, child, site))
    for site in set(chosen) - {"cls", "all"}:
        if not any(layer.site == site for layer in found):
            raise UserError(f"{type(module).__name__} has no layer at site '{site}'")
    return found


def tied_groups(module: nn.Module, layers: Iterable[Layer]) -> list[list[Layer]]:
    """Group ``layers`` of ``module`` by weight: tied layers together, any other alone.

    Layers whose bases a method shares are together, too. A method gives the layers of one group
    the same trained tensors, so that they stay tied.

    Raises:
        UserError: a layer shares a tensor with a part of ``module`` that is not in its group; a
            method would silently break that tie.
    """
    groups: dict[tuple[int, ...], list[Layer]] = {}
    for layer in layers:
        key = tuple(map(id, trained_tensors(layer.module)))
        groups.setdefault(key, []).append(layer)
    owners: dict[int, set[str]] = {}
    for name, child in module.named_modules():
        if not isinstance(child, parametrize.ParametrizationList):
            for parameter in trained_tensors(child):
                owners.setdefault(id(parameter), set()).add(name)
    for group in groups.values():
        members = {layer.name for layer in group}
        for parameter in trained_tensors(group[0].module):
            for other in sorted(owners[id(parameter)] - members):
                raise UserError(
                    f"{group[0].name} and {other} share a tensor but not weight and bias both, "
                    "or only one is at the chosen sites; choose sites with neither of them"
                )
    return list(groups.values())


def tie(layers: Sequence[nn.Module]) -> None:
    """Give all ``layers``, whose weights are tied, the parametrizations of the first."""
    first, *others = layers
    for other in others:
        for name in first.parametrizations:
            if chain_of(other, name) is None:
                # unsafe: torch's check would compute every weight once more.
                parametrize.register_parametrization(other, name, nn.Identity(), unsafe=True)
                other.parametrizations[name] = first.parametrizations[name]
