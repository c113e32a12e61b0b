"""From the training model to a plain one, and how many parameters a model has.

Every method is a parametrization of a layer's weight (see ``methods.registry``). Deploying
builds new plain layers from the effective weights. It never calls torch's
``remove_parametrizations``, which on a deep copy would also break the original, since both share
one generated class.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.protocols import Deployable, Family, FamilyOwner, Memo, Rounding
from espnet_ext.methods.tensors import graph_tensors, refuse_not_finite
from espnet_ext.methods.verify import (
    largest_difference,
    outputs,
    refuse_difference,
    refuse_other_weight,
)

PLAIN = "plain"  # the variant of a model without a method
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def variants(model: nn.Module) -> tuple[str, ...]:
    """Names that ``deploy(model, name)`` accepts."""
    families = _families(model)
    if not families and not any(map(_has_method, model.modules())):
        return (PLAIN, "merged")
    # The containers of one model have the same members.
    members = dict.fromkeys(member.name for family in families for member in family.family)
    # Members of a family have the second variant of their layers anyway.
    layers = [] if families else model.modules()
    second = {part.variant for layer in layers for part in _deployables(layer)}
    return ("merged", *members, *sorted(second))


def deploy(model: nn.Module, variant: str = "merged", example: Any = None) -> nn.Module:
    """Return a new, plain module with the same output as ``model`` in evaluation mode.

    The argument is not changed. A layer or tensor used in several places stays one object.
    Products are computed in float64 and rounded once.

    Args:
        model: the training model, in evaluation mode.
        variant: one of ``variants``.
        example: input for a verification: a tensor, or a tuple of arguments. Both models are run,
            and their outputs compared.

    Raises:
        UserError: unknown variant, ``model`` in training mode, weights that are not finite, or
            outputs for ``example`` that differ by more than 1e-5.
    """
    known = variants(model)
    if variant not in known:
        raise UserError(f"unknown variant {nearest(variant, known)}")
    if model.training:
        raise UserError("deploy needs evaluation mode: call model.eval() first")
    check_finite(model)
    memo: Memo = {id(kept): kept.detach().clone() for kept in graph_tensors(model)}
    families = _families(model)
    member = bool(families) and variant != "merged"
    with contextlib.ExitStack() as selected:
        members = [selected.enter_context(family.as_member(variant)) for family in families]
        for module in model.modules():
            if _has_method(module):
                memo[id(module)] = _deployed_layer(module, variant, memo, member)
        for family in families:  # after the layers, which they copy from the memo
            memo[id(family)] = family.extract_member(memo)
        plain = copy.deepcopy(model, memo)
        expected = None if example is None else outputs(model, example)
    for member in members:
        for owner in plain.modules():
            if isinstance(owner, FamilyOwner):
                owner.member_extracted(member)
    check_finite(plain)  # finite factors may have a product that is not
    if expected is not None:
        refuse_difference(largest_difference(outputs(plain, example), expected), variant)
    return plain


def check_finite(model: nn.Module) -> None:
    """Raise UserError naming the first tensor of ``model`` with NaN or infinite entries."""
    for name, tensor in model.state_dict().items():
        refuse_not_finite(tensor, name)


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Number of distinct parameters in ``modules``, each counted once however often used."""
    unique = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in unique.values())


def footprint(model: nn.Module) -> dict[str, int]:
    """Count parameters by part; 0 for a part that the model lacks.

    ``encoder_blocks`` excludes the normalisation layers, which are ``encoder_norms``, as the
    papers count (arXiv 2310.02489, table 1). ``encoder_stack`` of a speech representation model
    is everything after its front end, as in arXiv 2409.16302: positions, norms and layers, or the
    mimics that replace them. Parameters shared by two parts count in both but once in ``total``.
    """

    def part(name: str) -> list[nn.Module]:
        try:
            return [model.get_submodule(name)]
        except AttributeError:
            return []

    blocks = part("encoder.encoders") or part("encoder.layers")
    norms = parameter_count(m for block in blocks for m in block.modules() if _is_norm(m))
    counts = {
        "frontend": parameter_count(part("frontend")),
        "encoder_blocks": parameter_count(blocks) - norms,
        "encoder_norms": norms,
    }
    if stack := part("encoder.stack_only"):
        counts["encoder_stack"] = parameter_count(stack)
    for name in ("encoder", "decoder", "joint_network", "ctc"):
        counts[name] = parameter_count(part(name))
    return {**counts, "total": parameter_count([model])}


def _is_norm(module: nn.Module) -> bool:
    """True for layer, batch and similar normalisations, torch's or a class named like them."""
    if isinstance(module, _NORMS):  # also one with children, as in a family
        return True
    return "Norm" in type(module).__name__ and not list(module.children())


def _families(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Family)]


def _has_method(layer: nn.Module) -> bool:
    """True if a method computes a weight of the layer; torch's weight normalisation is none."""
    if not parametrize.is_parametrized(layer) or isinstance(layer, Deployable):  # a part itself
        return False
    chains: Any = layer.parametrizations
    parts = [part for chain in chains.values() for part in chain]
    return not all(type(part).__module__.startswith("torch.") for part in parts)


def _deployables(layer: nn.Module) -> Iterator[Deployable]:
    if parametrize.is_parametrized(layer, "weight"):
        chain: Any = layer.parametrizations["weight"]
        yield from (part for part in chain if isinstance(part, Deployable))


def _deployed_layer(layer: nn.Module, variant: str, memo: Memo, member: bool) -> nn.Module:
    """Deploy one layer: as ``variant`` if it has that one, else as a plain layer.

    A ``member`` of a family has the second variant, in which what layers share is there once.
    """
    for part in _deployables(layer):
        if part.variant == variant or member:
            deployed = part.deployed(layer, memo).eval()
            refuse_other_weight(deployed, layer)
            return deployed
    return _plain_layer(layer, memo)


def _plain_layer(layer: nn.Module, memo: Memo) -> nn.Module:
    """Build the plain layer with the effective tensors of a parametrized one.

    ``memo`` maps the id of a parametrization or parameter to the tensor that replaces it.
    """
    exact = copy.deepcopy(layer)
    if not any(isinstance(part, Rounding) for part in exact.modules()):
        exact = exact.double()
    plain = empty_like(layer)
    sources = dict(layer.parametrizations.items())
    sources |= {name: p for name, p in layer._parameters.items() if p is not None}
    plain.requires_grad_(any(p.requires_grad for p in layer.parameters()))
    for name, source in sources.items():
        with torch.no_grad():
            getattr(plain, name).copy_(getattr(exact, name))
        setattr(plain, name, memo.setdefault(id(source), getattr(plain, name)))
    return plain.eval()


def empty_like(layer: Any) -> nn.Module:
    """Return a plain layer of the shape of a parametrized one, its weights not set.

    ``skip_init``: deploying in the middle of a training draws no random number.

    Raises:
        UserError: another layer than Linear, Conv1d, Conv2d, Embedding, LSTM and GRU.
    """
    factor = next(layer.parameters())
    kind = {"dtype": factor.dtype, "device": factor.device}
    if isinstance(layer, nn.Linear):
        outputs, inputs = layer.weight.shape  # a sub-network's weight is smaller than the layer's
        return skip_init(nn.Linear, inputs, outputs, bias=layer.bias is not None, **kind)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        names = "kernel_size stride padding dilation groups padding_mode".split()
        options = {name: getattr(layer, name) for name in names}
        sizes = (layer.in_channels, layer.out_channels)
        convolution = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
        return skip_init(convolution, *sizes, bias=layer.bias is not None, **options, **kind)
    if isinstance(layer, nn.Embedding):
        options = {"padding_idx": layer.padding_idx, **kind}
        return skip_init(nn.Embedding, layer.num_embeddings, layer.embedding_dim, **options)
    if isinstance(layer, nn.LSTM | nn.GRU):
        names = "num_layers bias batch_first dropout bidirectional".split()
        options = {name: getattr(layer, name) for name in names}
        if layer.proj_size:
            options["proj_size"] = layer.proj_size
        recurrent = nn.LSTM if isinstance(layer, nn.LSTM) else nn.GRU
        sizes = (layer.input_size, layer.hidden_size)
        empty = recurrent(*sizes, **options, dtype=factor.dtype, device="meta")
        return empty.to_empty(device=factor.device)  # skip_init does not know these
    known = "Linear, Conv1d, Conv2d, Embedding, LSTM, GRU"
    raise UserError(f"cannot deploy a {type(layer).__name__}; known: {known}")
