"""From the training form of a model to a plain one: ``deploy``, and what a model weighs.

Every method is a parametrization of a layer's weight (see ``methods.registry``). Deploying
builds new plain layers from the effective weights. It never calls torch's
``remove_parametrizations``: on a deep copy that would also break the original, since a
copy shares its generated class.
"""

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init

from espnet_ext.errors import UserError, nearest

PLAIN = "plain"  # a model that no method has touched


def variants(model: nn.Module) -> tuple[str, ...]:
    """Names that ``deploy(model, name)`` takes."""
    if not _has_method(model):
        return (PLAIN, "merged")
    members = [member.name for stack in _families(model) for member in stack.family]
    forms = sorted({p.variant for m in model.modules() for p in _own_forms(m)})
    return ("merged", *members, *forms)


def deploy(model: nn.Module, variant: str = "merged") -> nn.Module:
    """Return a new, plain module with the same output as ``model`` in evaluation mode.

    The argument is not changed. A layer or tensor used in several places is still one.
    Products are formed in float64 and rounded once.

    Raises:
        UserError: unknown variant, ``model`` in training mode, or weights that are not finite.
    """
    known = variants(model)
    if variant not in known:
        raise UserError(f"unknown variant {nearest(variant, known)}")
    if model.training:
        raise UserError("deploy needs evaluation mode: call model.eval() first")
    check_finite(model)
    # deepcopy takes what the memo holds in place of the original, so each replaced layer or
    # tensor stays one however often it is used.
    memo: dict[int, Any] = {}
    with contextlib.ExitStack() as chosen:
        for stack in _families(model):
            chosen.enter_context(stack.as_member(variant))
        for module in model.modules():
            if _is_parametrized(module):
                memo[id(module)] = _deployed_layer(module, variant, memo)
            for value in vars(module).values():
                # ESPnet's attention keeps its last weights, and deepcopy refuses a tensor with
                # a graph behind it.
                if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                    memo[id(value)] = value.detach().clone()
        for stack in _families(model):  # last: they copy layers, which the memo holds by now
            memo[id(stack)] = stack.deployed_stack(memo)
        plain = copy.deepcopy(model, memo)
        for stack in _families(model):
            for module in plain.modules():
                if hasattr(module, "taken_out"):  # what knows its layers by other means too
                    module.taken_out(stack.choice.member)
    check_finite(plain)  # finite factors may have a product that is not
    return plain


def check_finite(model: nn.Module) -> None:
    """Raise UserError naming the first tensor of ``model`` with NaN or infinite entries."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} holds NaN or infinite values; train again or take another epoch"
            )


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Number of distinct parameters in ``modules``, each counted once however often used."""
    unique = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in unique.values())


def footprint(model: nn.Module) -> dict[str, int]:
    """Parameters by part; 0 for a part that the model lacks.

    ``encoder_blocks`` are the blocks without their normalisation layers, which stand in
    ``encoder_norms``: so the papers count (arXiv 2310.02489, table 1). Of a speech representation
    model ``encoder_stack`` is all behind its front end, as arXiv 2409.16302 draws it: positions,
    norms and layers, or the mimics in their place. Parameters shared by two parts count in both
    but once in the ``total``.
    """

    def count(name: str) -> int:
        part = model.get_submodule(name) if _has(model, name) else None
        return 0 if part is None else parameter_count([part])

    blocks = next((n for n in ("encoder.encoders", "encoder.layers") if _has(model, n)), "")
    norms = 0
    if blocks:
        norms = parameter_count(m for m in model.get_submodule(blocks).modules() if _is_norm(m))
    whole = count(blocks) if blocks else 0
    parts = {
        "frontend": count("frontend"),
        "encoder_blocks": whole - norms,
        "encoder_norms": norms,
    }
    if _has(model, "encoder.stack_only"):
        parts["encoder_stack"] = count("encoder.stack_only")
    parts |= {name: count(name) for name in ("encoder", "decoder", "joint_network", "ctc")}
    return {**parts, "total": parameter_count([model])}


def _is_norm(module: nn.Module) -> bool:
    """True for layer, batch and similar normalisations, torch's or a class named like them."""
    return "Norm" in type(module).__name__ and not list(module.children())


def _has(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), nn.Module)
    except AttributeError:
        return False


def _has_method(model: nn.Module) -> bool:
    return any(_is_method(m) for m in model.modules())


def _families(model: nn.Module) -> list[Any]:
    """Containers of layers that are families of sub-networks (``methods.nested``)."""
    return [module for module in model.modules() if hasattr(module, "deployed_stack")]


def _is_method(module: nn.Module) -> bool:
    """True if a method is on a layer, or makes a family of a stack of them."""
    return hasattr(module, "deployed_stack") or _is_parametrized(module)


def _is_parametrized(module: nn.Module) -> bool:
    """True if a method computes a layer's weight; torch's own weight normalisation is none."""
    if not parametrize.is_parametrized(module):
        return False
    lists: Any = module.parametrizations
    parts = [part for one in lists.values() for part in one]
    return not all(type(part).__module__.startswith("torch.") for part in parts)


def _own_forms(layer: nn.Module) -> list[Any]:
    """Parametrizations of the weight that know a deployed form besides the merged layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    weight: Any = layer.parametrizations["weight"]
    return [p for p in weight if hasattr(p, "variant")]


def _deployed_layer(layer: nn.Module, variant: str, memo: dict[int, Any]) -> nn.Module:
    """The form ``variant`` of a parametrized layer; merged where its method has no such form."""
    for parametrization in _own_forms(layer):
        if parametrization.variant == variant:
            return parametrization.deployed(layer, memo).eval()
    return _plain_layer(layer, memo)


def _plain_layer(layer: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Build the plain layer with the effective weight and bias of a parametrized one.

    ``memo`` maps the id of a parametrization or parameter to the tensor that replaces it.
    """
    exact = copy.deepcopy(layer)
    if not any(getattr(m, "rounds", False) for m in exact.modules()):  # float64 rounds otherwise
        exact = exact.double()
    plain = _like(layer)
    # What was parametrized, and what was left alone (a bias, say).
    names = [*layer.parametrizations, *(n for n, p in layer._parameters.items() if p is not None)]
    with torch.no_grad():
        for name in names:
            getattr(plain, name).copy_(getattr(exact, name))
    plain.requires_grad_(any(p.requires_grad for p in layer.parameters()))
    for name in names:
        tied = layer.parametrizations if name in layer.parametrizations else layer._parameters
        setattr(plain, name, memo.setdefault(id(tied[name]), getattr(plain, name)))
    return plain.eval()


def _like(layer: Any) -> nn.Module:
    """A plain layer of the shape of a parametrized one, its weights not yet set.

    skip_init: deploying in the middle of training draws no random number.
    """
    factor = next(layer.parameters())
    kind = {"dtype": factor.dtype, "device": factor.device}
    if isinstance(layer, nn.Linear):
        bias = layer.bias is not None
        outputs, inputs = layer.weight.shape  # of what is computed, which may be a part
        return skip_init(nn.Linear, inputs, outputs, bias=bias, **kind)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        names = "kernel_size stride padding dilation groups padding_mode".split()
        options = {name: getattr(layer, name) for name in names}
        sizes = (layer.in_channels, layer.out_channels)
        plain = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
        return skip_init(plain, *sizes, bias=layer.bias is not None, **options, **kind)
    if isinstance(layer, nn.LSTM | nn.GRU):
        names = "num_layers bias batch_first dropout bidirectional".split()
        options = {name: getattr(layer, name) for name in names}
        if layer.proj_size:
            options["proj_size"] = layer.proj_size
        recurrent = nn.LSTM if isinstance(layer, nn.LSTM) else nn.GRU
        sizes = (layer.input_size, layer.hidden_size)
        empty = recurrent(*sizes, **options, dtype=factor.dtype, device="meta")
        return empty.to_empty(device=factor.device)  # skip_init does not know these
    raise UserError(
        f"cannot deploy a {type(layer).__name__}; known: Linear, Conv1d, Conv2d, LSTM, GRU"
    )
