"""Nested sub-networks of one parameter set: depth, width and precision (arXiv 2406.10160).

The layers of an encoder stay where they are; a sub-network is computed from them. A
parametrization gives the weights (the leading units, rounded to b bits), and the container gives
the sequence of layers. All of them read the same ``Selection``.

Sub-networks of the same width and precision have the same activations up to the layer where their
sequences part, so ``running`` computes these once: if depths are "the first d layers", a smaller
depth is an intermediate output of a larger one. Sub-networks of other widths or precisions share
only what comes before the first layer. A batch normalisation has statistics for each sequence of
layers up to it, so they equal what every sub-network would have gathered if trained alone.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import ADDED, attach, attach_to_all, chain_of, place_of
from espnet_ext.methods.nested_from_plain import start_from_plain
from espnet_ext.methods.nested_layers import (
    NestedBatchNorm,
    NestedBias,
    NestedWeight,
    Selection,
    Width,
)
from espnet_ext.methods.nested_norms import nest_norms, replace_norms
from espnet_ext.methods.nested_options import (
    ALL,
    Member,
    NestedOptions,
    Stack,
    family_members,
    find_member,
)
from espnet_ext.methods.nested_order import sort_units
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.registry import Method, register
from espnet_ext.methods.residual import refuse_alone
from espnet_ext.methods.sites import (
    Layer,
    feed_forward_role,
    is_matrix_layer,
    tie,
    tied_groups,
)

RESIDUAL_BITS = 8  # at least, of the factors of residuals
# Attributes that a container has in addition to those of its plain class.
_ADDED = ("selection", "options", "plain_class")


class Container(nn.Module):
    """A container of a family's layers (a ``Family``); mixed into the container's class."""

    selection: Selection
    plain_class: type[nn.Module]  # of the container in a plain model

    @property
    def family(self) -> tuple[Member, ...]:
        """All sub-networks, the largest first."""
        return self.selection.family

    @contextlib.contextmanager
    def as_member(self, name: str) -> Iterator[Member]:
        """Select the sub-network ``name`` inside the block; ``merged`` is the largest."""
        before = self.selection.member
        self.selection.member = find_member(self.family, name)
        try:
            yield self.selection.member
        finally:
            self.selection.member = before

    def extract_layers(self, layers: Sequence[int], memo: Memo) -> nn.Module:
        """Build the plain container of some layers, which are in ``memo``."""
        kind: Any = self.plain_class
        plain = kind.__new__(kind)
        plain.__dict__ = {k: v for k, v in self.__dict__.items() if k not in _ADDED}
        plain._modules = {str(k): self._modules[str(layer)] for k, layer in enumerate(layers)}
        plain._buffers = {k: v for k, v in self._buffers.items() if k != "steps"}
        return copy.deepcopy(plain, memo)


class NestedStack(Container):
    """The container of an encoder's layers.

    The forward pass of an encoder iterates over the container. For one sub-network it yields that
    sub-network's layers; inside ``running`` it yields one callable that runs all sub-networks.
    """

    options: NestedOptions

    def __iter__(self) -> Iterator[Any]:
        if self.selection.together:
            yield self._run_as_layer
            return
        layers = self.selection.member.layers
        for place, layer in enumerate(layers, 1):
            self.selection.path = layers[:place]
            yield self._modules[str(layer)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        start_from_plain(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @contextlib.contextmanager
    def running(self, members: Sequence[Member]) -> Iterator[dict[Member, Any]]:
        """Compute all ``members`` in each forward pass of the encoder inside the block.

        The encoder returns the output of the first. Yields a dict that holds, after the pass, what
        the last layer of each member returned.
        """
        selection, before = self.selection, self.selection.member
        selection.together, selection.outputs = tuple(members), {}
        try:
            with self.rounding_once():
                yield selection.outputs
        finally:
            selection.together, selection.outputs = (), {}
            selection.member = before

    @contextlib.contextmanager
    def rounding_once(self) -> Iterator[None]:
        """Round each weight once for a precision inside the block, where no weight changes."""
        selection, before = self.selection, self.selection.rounded
        selection.rounded = {} if before is None else before
        try:
            yield
        finally:
            selection.rounded = before

    def extract_member(self, memo: Memo) -> nn.Module:
        """Build the plain container of the selected sub-network's layers."""
        layers = self.selection.member.layers
        for count, layer in enumerate(layers, 1):
            self.selection.path = layers[:count]
            for norm in self.get_submodule(str(layer)).modules():
                if isinstance(norm, NestedBatchNorm):
                    memo[id(norm)] = norm.deployed(memo)
        return self.extract_layers(layers, memo)

    def run_together(self, step: Callable[[nn.Module, Any], Any], start: Any) -> Any:
        """Run the layers of all members of ``running``; common first layers run once.

        Args:
            step: maps a layer and its input to its output, the input of the next layer.
            start: input of the first layers.

        Returns:
            The output of the first member.
        """
        selection = self.selection
        groups: dict[tuple[int | None, int], list[Member]] = {}
        for member in selection.together:
            groups.setdefault((member.width, member.bits), []).append(member)
        for group in groups.values():
            selection.member = group[0]  # only its width and bits matter
            self._run_from((), group, start, step)
        return selection.outputs[selection.together[0]]

    def _run_as_layer(self, *start: Any) -> Any:
        """Run all members like one layer of ESPnet, whose output is the next layer's arguments."""
        return self.run_together(
            lambda layer, given: layer(*(given if isinstance(given, tuple) else (given,))), start
        )

    def _run_from(
        self, path: tuple[int, ...], group: list[Member], inputs: Any, step: Callable
    ) -> None:
        """Run the layers after ``path``, whose output is ``inputs``, for members that share it."""
        following: dict[int, list[Member]] = {}
        for member in group:
            if member.layers == path:
                self.selection.outputs[member] = inputs
            else:
                following.setdefault(member.layers[len(path)], []).append(member)
        for layer, members in following.items():
            self.selection.path = (*path, layer)
            output = step(self.get_submodule(str(layer)), inputs)
            self._run_from((*path, layer), members, output, step)


def apply_nested(module: nn.Module, options: NestedOptions) -> nn.Module:
    """Turn the encoder ``module`` into a family, in place; return ``module``.

    Raises:
        UserError: the encoder has no single stack of layers, its feed-forward networks differ in
            width, or the options do not fit it.
    """
    name, stack = find_stack(module)
    _refuse_other_sequences(module, stack)
    if options.norm == "layer":
        replace_norms(stack)
    if options.form == "plain":
        return module
    found = matrix_layers(name, stack)
    family = family_members(options, Stack(len(stack._modules), inner_width(found)))
    for member in family:
        refuse_alone(stack, member.layers)
    selection = Selection(family[0], family)
    rounded, narrowed = set(options.bits) != {32}, len({m.width for m in family}) > 1
    if narrowed and options.sort_units:
        sort_units(found)
    for group in tied_groups(module, found):
        role = group[0].site if narrowed else "other"
        if rounded or role != "other":
            nest_layers([layer.module for layer in group], selection, options, role)
    if options.norm == "own":
        nest_norms(stack, family, selection)
    kind = type(stack)
    stack.__class__ = type(f"Nested{kind.__name__}", (NestedStack, kind), {})
    assert isinstance(stack, NestedStack)
    stack.selection = selection
    stack.options, stack.plain_class = options, kind
    if options.sample != ALL:
        stack.register_buffer("steps", torch.zeros((), dtype=torch.long))
    return module


def nest_layer(layer: nn.Module, options: NestedOptions) -> None:
    """Parametrize a single layer, at the precision of the largest network, in place."""
    nest_layers([layer], Selection(Member((), None, max(options.bits))), options, "other")


def nested_stack(module: nn.Module) -> NestedStack | None:
    """Return the container of the family in ``module``, None if there is no family."""
    return next((m for m in module.modules() if isinstance(m, NestedStack)), None)


def find_stack(module: nn.Module) -> tuple[str, nn.Module]:
    """Return name and container of the numbered stack of layers in ``module``.

    Raises:
        UserError: there is none, or more than one.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if name.rpartition(".")[2] in ("encoders", "decoders", "layers") and not inside:
            names = [key for key, _ in child.named_children()]
            if names and all(key.isdecimal() for key in names):
                found.append((name, child))
    if len(found) != 1:
        kind = type(module).__name__
        raise UserError(f"nested: {kind} has {len(found)} stacks of layers, not one")
    return found[0]


def _refuse_other_sequences(encoder: nn.Module, stack: nn.Module) -> None:
    """Raise UserError if an encoder does not simply run its layers one after another."""
    if getattr(encoder, "interctc_layer_idx", None):
        raise UserError(
            "nested: the smaller depths replace intermediate CTC losses; "
            "choose interctc_layer_idx: []"
        )
    for owner in (encoder, stack):
        if getattr(owner, "layer_drop_rate", 0):
            raise UserError("nested: layers cannot be dropped at random; choose layer_drop_rate: 0")
    if getattr(encoder, "gradient_checkpoint_layers", None):
        raise UserError("nested: choose gradient_checkpoint_layers: []")


def matrix_layers(name: str, stack: nn.Module) -> list[Layer]:
    """The layers of a stack of this name that a precision concerns; their site is their role."""
    return [
        Layer(f"{name}.{inner}", layer, feed_forward_role(inner) or "other")
        for inner, layer in stack.named_modules()
        if is_matrix_layer(layer)
    ]


def inner_width(found: Sequence[Layer]) -> int | None:
    """Return the inner units of the feed-forward networks in ``found``; None if there are none."""
    widths = {layer.module.weight.shape[0] for layer in found if layer.site == "up"}
    if len(widths) > 1:
        raise UserError(f"nested: feed-forward networks of different widths: {sorted(widths)}")
    return widths.pop() if widths else None


def nest_layers(
    layers: Sequence[nn.Module],
    selection: Selection,
    options: NestedOptions,
    role: str,
    width: Width = "width",
) -> None:
    """Parametrize layers that are tied or share a base, or a single one.

    Raises:
        UserError: ``role`` would cut or sort a weight that residuals are added to, or sort one that
            factors give.
    """
    first: Any = layers[0]
    cut = {"up": 0, "down": 1}.get(role)
    chains = [chain for layer in layers if (chain := chain_of(layer, "weight")) is not None]
    if cut is not None and (_residuals(layers) or (chains and options.sort_units)):
        raise UserError(
            "nested: widths cannot be together with residual, nor sort_units with another method"
        )
    weight = NestedWeight(first.weight, selection, options, cut, width=width)
    round_layers(layers, weight, selection, options)
    if role == "up" and first.bias is not None:
        attach_to_all(layers, "bias", NestedBias(selection, width))
        tie(layers)


def round_layers(
    layers: Sequence[nn.Module], part: nn.Module, selection: Selection, options: NestedOptions
) -> None:
    """Attach what rounds the weight of layers that are tied or share a base, or of a single one.

    Residuals on a base are rounded too, to RESIDUAL_BITS at least.
    """
    attach_to_all(layers, "weight", part)
    tie(layers)
    for residual in _residuals(layers):
        for name, factor in list(residual.named_parameters(recurse=False)):
            if factor.dim() == 2:
                rounded = NestedWeight(factor, selection, options, None, RESIDUAL_BITS)
                attach(residual, name, rounded)


def _residuals(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The residuals of layers, each once."""
    parts = [part for layer in layers for part in chain_of(layer, "weight") or ()]
    return list({id(part): part for part in parts if place_of(part) == ADDED}.values())


def start(module: nn.Module, state: dict[str, Any], prefix: str) -> list[str]:
    """Start at trained layers, in the stack and outside it; see ``methods.start``."""
    for name, part in module.named_modules():
        if isinstance(part, NestedStack):
            start_from_plain(part, state, f"{prefix}{name}." if name else prefix)
    start_from_plain(module, state, prefix)
    return []


_BASES = ("conformer", "transformer", "e_branchformer")
register(
    Method(
        *("nested", NestedOptions, apply_nested, nest_layer, "arXiv 2406.10160"),
        bases=_BASES,
        start=start,
    )
)
