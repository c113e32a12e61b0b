"""Nested sub-networks of one parameter set: depth, width and precision (arXiv 2406.10160).

The layers of an encoder stay where they are. What differs between the sub-networks is computed:
a weight by a parametrization (its leading units, rounded to b bits), the sequence of layers by
their container. Which sub-network is computed, all of them read in one ``Choice``.

Two sub-networks of the same width and precision whose first layers are the same have the same
activations there, so ``running`` computes those once for both: of a family of "first d layers" a
depth is an exit on the way of the next. Widths and precisions differ from the first layer on and
share what stands before it. A batch normalisation has statistics for each of these ways through
the stack, which is what every sub-network taken alone would have gathered.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.nested_from_plain import start_from_plain
from espnet_ext.methods.nested_layers import (
    Choice,
    FrameNorm,
    NestedBatchNorm,
    NestedBias,
    NestedWeight,
    way,
)
from espnet_ext.methods.nested_options import Member, NestedOptions, find_member, members
from espnet_ext.methods.sites import Layer, feed_forward_role, tied_groups


class NestedStack(nn.Module):
    """The container of layers of a family; mixed into the class that ESPnet's encoder has there.

    An encoder's forward pass asks it for its layers one after another. Of one sub-network it
    gives those; while ``running`` it gives a single one that runs all sub-networks.
    """

    choice: Choice
    family: tuple[Member, ...]
    options: NestedOptions
    _plain: type[nn.Module]

    def __iter__(self) -> Iterator[Any]:
        if self.choice.running:
            yield self._run
            return
        layers = self.choice.member.layers
        for place, layer in enumerate(layers, 1):
            self.choice.path = layers[:place]
            yield self._modules[str(layer)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        start_from_plain(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @contextlib.contextmanager
    def running(self, chosen: Sequence[Member]) -> Iterator[dict[Member, tuple]]:
        """Inside, a forward pass of the encoder computes all ``chosen``; its own output is that
        of the first. Yields what the last layer of each returned, once the pass is over."""
        before = self.choice.member
        self.choice.running, self.choice.exits, self.choice.rounded = tuple(chosen), {}, {}
        try:
            yield self.choice.exits
        finally:
            self.choice.running, self.choice.exits, self.choice.rounded = (), {}, None
            self.choice.member = before

    @contextlib.contextmanager
    def as_member(self, name: str) -> Iterator[Member]:
        """Inside, the encoder is the sub-network ``name``; ``merged`` is the largest."""
        before = self.choice.member
        self.choice.member = find_member(self.family, name)
        try:
            yield self.choice.member
        finally:
            self.choice.member = before

    def deployed_stack(self, memo: dict[int, Any]) -> nn.Module:
        """The plain container of the chosen sub-network's layers."""
        layers = self.choice.member.layers
        for count, layer in enumerate(layers, 1):
            self.choice.path = layers[:count]
            for norm in self.get_submodule(str(layer)).modules():
                if isinstance(norm, NestedBatchNorm):
                    memo[id(norm)] = norm.deployed(memo)
        kind: Any = self._plain
        plain = kind.__new__(kind)
        ours = ("choice", "family", "options", "_plain")
        plain.__dict__ = {k: v for k, v in self.__dict__.items() if k not in ours}
        plain._modules = {str(k): self._modules[str(layer)] for k, layer in enumerate(layers)}
        plain._buffers = {k: v for k, v in self._buffers.items() if k != "steps"}
        return copy.deepcopy(plain, memo)

    def walk(self, step: Callable[[nn.Module, Any], Any], start: Any) -> Any:
        """Run the layers of all members, those that are one way only once.

        Args:
            step: maps a layer and its input to its output, the input of the next.
            start: input of the first layers.

        Returns:
            The output of the first member that ``running`` was given.
        """
        ways: dict[tuple[int | None, int], list[Member]] = {}
        for member in self.choice.running:
            ways.setdefault((member.width, member.bits), []).append(member)
        for group in ways.values():
            self.choice.member = group[0]  # what counts are width and bits
            self._descend((), group, start, step)
        return self.choice.exits[self.choice.running[0]]

    def _run(self, *start: Any) -> Any:
        """Run all members as ESPnet's encoders run layers: what one returns, the next is given."""
        return self.walk(
            lambda layer, given: layer(*(given if isinstance(given, tuple) else (given,))), start
        )

    def _descend(
        self, path: tuple[int, ...], group: list[Member], inputs: Any, step: Callable
    ) -> None:
        """Run the layers behind ``path``, whose output is ``inputs``."""
        for member in group:
            if member.layers == path:
                self.choice.exits[member] = inputs
        further = [m for m in group if len(m.layers) > len(path)]
        for layer in dict.fromkeys(m.layers[len(path)] for m in further):
            self.choice.path = (*path, layer)
            output = step(self.get_submodule(str(layer)), inputs)
            taking = [m for m in further if m.layers[len(path)] == layer]
            self._descend((*path, layer), taking, output, step)


def apply_nested(module: nn.Module, options: NestedOptions) -> nn.Module:
    """Make a family of the encoder ``module``, in place; return ``module``.

    Raises:
        UserError: the encoder has no single stack of layers, its feed-forward networks differ in
            width, or the options do not fit it.
    """
    name, stack = find_stack(module)
    _refuse_other_ways(module, stack)
    if options.norm == "layer":
        _replace_norms(stack)
    if options.form == "plain":
        return module
    found = [
        Layer(f"{name}.{inner}", layer, feed_forward_role(inner) or "other")
        for inner, layer in stack.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    family = members(options, len(stack._modules), _inner_width(found))
    choice = Choice(family[0])
    rounded, narrowed = set(options.bits) != {32}, len({m.width for m in family}) > 1
    groups = tied_groups(module, found)
    for group in groups:
        role = group[0].site if narrowed else "other"
        if rounded or role != "other":
            _nest(group, choice, options, role)
    if options.norm == "own":
        _nest_norms(stack, family, choice)
    kind = type(stack)
    stack.__class__ = type(f"Nested{kind.__name__}", (NestedStack, kind), {})
    assert isinstance(stack, NestedStack)
    stack.choice, stack.family, stack.options, stack._plain = choice, family, options, kind
    if options.sample != "all":
        stack.register_buffer("steps", torch.zeros((), dtype=torch.long))
    return module


def nest_layer(layer: nn.Module, options: NestedOptions) -> None:
    """Parametrize one layer alone, at the largest network's precision, in place."""
    if parametrize.is_parametrized(layer):
        raise UserError("nested: this layer already has a method; one method a layer")
    choice = Choice(Member((), None, max(options.bits)))
    _nest([Layer("", layer, "other")], choice, options, "other")


def nested_stack(module: nn.Module) -> NestedStack | None:
    """The container of the family that ``module`` holds, None if it holds none."""
    return next((m for m in module.modules() if isinstance(m, NestedStack)), None)


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
    return {f"{name}.weight": layer.weight for name, layer in _rounded_layers(encoder)}


def integer_weights(encoder: nn.Module, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Integers (int8) and scales of the member ``name`` of a family at 8, 4 or 2 bits.

    Args:
        encoder: the training form.
        name: of the member.

    Returns:
        By the name in the state dict of ``deploy(encoder, name)``, whose weights are the products
        to the last bit. A scale has the shape () or (o, 1, ...).
    """
    stack = nested_stack(encoder)
    if stack is None:
        raise UserError("this encoder holds no family of sub-networks")
    prefix = find_stack(encoder)[0]
    with stack.as_member(name) as member:
        if member.bits == 32:
            raise UserError(f"nested: {name} is at 32 bits; it has no integers")
        found = {}
        for place, layer in enumerate(member.layers):
            for inner, part in _rounded_layers(stack.get_submodule(str(layer)), whole=True):
                weights: Any = part.parametrizations["weight"]
                key = f"{prefix}.{place}.{inner}.weight"
                found[key] = weights[0].integers(weights.original)
        return found


def block_bits(encoder: nn.Module, bits: int) -> int:
    """Bits of a plain encoder's blocks: ``quantised_weights`` at ``bits``, the rest at 32.

    So the paper counts (arXiv 2406.10160): without what scales take.
    """
    _, stack = find_stack(encoder)
    every = sum(p.numel() for p in stack.parameters())
    rounded = sum(weight.numel() for weight in quantised_weights(encoder).values())
    return rounded * bits + (every - rounded) * 32


def compression(encoder: nn.Module, plain: nn.Module, name: str) -> float | None:
    """How many times fewer bits the blocks of a member take than those of the largest at 32 bits.

    Counted as the paper does, blocks alone, see ``block_bits``: 12.83 for 12 layers of 256 with
    feed-forward networks of 1,024 at 4 bits out of a Conformer of 2,048 (arXiv 2406.10160 says
    12.8). It is no size of a file.

    Args:
        encoder: training form of a family; None is returned for any other.
        plain: ``deploy(encoder, name)``.
        name: of the member.
    """
    stack = nested_stack(encoder)
    if stack is None:
        return None
    own = stack.named_parameters()
    whole = 32 * sum(p.numel() for parameter, p in own if ".scales." not in parameter)
    return whole / block_bits(plain, find_member(stack.family, name).bits)


def _refuse_other_ways(encoder: nn.Module, stack: nn.Module) -> None:
    """Raise UserError if an encoder takes other ways through its layers than one after another."""
    if getattr(encoder, "interctc_layer_idx", None):
        raise UserError(
            "nested: the smaller depths take the place of intermediate CTC losses; "
            "choose interctc_layer_idx: []"
        )
    for owner in (encoder, stack):
        if getattr(owner, "layer_drop_rate", 0):
            raise UserError("nested: layers cannot be dropped at random; choose layer_drop_rate: 0")
    if getattr(encoder, "gradient_checkpoint_layers", None):
        raise UserError("nested: choose gradient_checkpoint_layers: []")


def _rounded_layers(module: nn.Module, whole: bool = False) -> list[tuple[str, nn.Module]]:
    """Names and layers that a precision concerns, in an encoder, or in the ``whole`` module."""
    name, stack = ("", module) if whole else find_stack(module)
    return [
        (f"{name}.{inner}".lstrip("."), layer)
        for inner, layer in stack.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]


def _inner_width(found: Sequence[Layer]) -> int | None:
    """Inner units of the feed-forward networks among the layers; None if there are none."""
    widths = {layer.module.weight.shape[0] for layer in found if layer.site == "up"}
    if len(widths) > 1:
        raise UserError(f"nested: feed-forward networks of different widths: {sorted(widths)}")
    return widths.pop() if widths else None


def _nest(group: Sequence[Layer], choice: Choice, options: NestedOptions, role: str) -> None:
    """Parametrize layers that are tied, or one alone."""
    first, *others = (layer.module for layer in group)
    cut = {"up": 0, "down": 1}.get(role)
    weight = NestedWeight(first.weight, choice, options, cut)
    # unsafe: torch's check would compute every weight once more.
    parametrize.register_parametrization(first, "weight", weight, unsafe=True)
    if role == "up" and first.bias is not None:
        parametrize.register_parametrization(first, "bias", NestedBias(choice), unsafe=True)
    for other in others:
        for name in first.parametrizations:
            parametrize.register_parametrization(other, name, nn.Identity(), unsafe=True)
        other.parametrizations.update(first.parametrizations.items())


def _nest_norms(stack: nn.Module, family: Sequence[Member], choice: Choice) -> None:
    """Give every batch normalisation of the stack its statistics, in place."""
    keys: dict[int, tuple[nn.BatchNorm1d, dict[str, None]]] = {}
    for member in family:
        own: dict[int, str] = {}
        for place, layer in enumerate(member.layers, 1):
            for norm in stack.get_submodule(str(layer)).modules():
                if type(norm) is nn.BatchNorm1d:
                    key = way(member.layers[:place], member)
                    keys.setdefault(id(norm), (norm, {}))[1][key] = None
                    if own.setdefault(id(norm), key) != key:
                        raise UserError(
                            f"nested: {member.name} has a layer twice, whose batch normalisation "
                            "then has one set of statistics; choose norm: layer"
                        )
    for norm, found in keys.values():
        NestedBatchNorm.convert(norm, choice, list(found))


def _replace_norms(stack: nn.Module) -> None:
    """Put a FrameNorm in the place of every batch normalisation."""
    memo: dict[int, nn.Module] = {}
    for parent in list(stack.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.BatchNorm1d:
                new = memo.setdefault(id(child), FrameNorm(child.num_features))
                parent._modules[name] = new
