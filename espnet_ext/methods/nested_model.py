"""Families over whole models: the decoder's layers, and the precision of every matrix."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import chain_of, part_of
from espnet_ext.methods.nested import (
    Container,
    NestedStack,
    find_stack,
    inner_width,
    matrix_layers,
    nest_layers,
    nested_stack,
    round_layers,
)
from espnet_ext.methods.nested_layers import LEAST_BITS, NestedWeight
from espnet_ext.methods.nested_options import Member, NestedOptions, Stack, family_members
from espnet_ext.methods.nested_order import sort_units
from espnet_ext.methods.nested_table import NestedTable, TableTokens
from espnet_ext.methods.positions import NestedPositions, are_sinusoids
from espnet_ext.methods.protocols import Memo
from espnet_ext.methods.residual import refuse_alone
from espnet_ext.methods.sites import Layer, is_matrix_layer, tied_groups

_SMALL = 4096  # numbers of a matrix that is not worth rounding
ALL_ALIKE = TableTokens()
_POSITION_BITS = 8  # at least: every frame depends on its position


class NestedDecoder(Container):
    """The container of a decoder's layers, which belong to the family of its encoder.

    A pass over it yields the selected layers.
    """

    def __iter__(self) -> Iterator[Any]:
        return (self._modules[str(layer)] for layer in self.selection.member.decoder or ())

    def extract_member(self, memo: Memo) -> nn.Module:
        """Build the plain container of the selected sub-network's layers."""
        return self.extract_layers(self.selection.member.decoder or (), memo)


def over_model(model: nn.Module) -> NestedStack | None:
    """The container of the family in a model whose precisions concern the whole model, if any."""
    stack = nested_stack(model)
    return stack if stack is not None and stack.options.over == "model" else None


def containers(model: nn.Module, member: Member) -> Iterator[tuple[nn.Module, Sequence[int]]]:
    """The containers of a family's layers, and the layers of a member in each."""
    for module in model.modules():
        if isinstance(module, NestedStack):
            yield module, member.layers
        elif isinstance(module, NestedDecoder):
            yield module, member.decoder or ()


def extend_to_model(model: Any, tokens: TableTokens = ALL_ALIKE) -> None:
    """Extend the family of an encoder to the model around it, where it is ``over: model``.

    In place. Of the decoder members have layers and widths, where the options say so, and every
    matrix of the model is rounded: linear and convolutional layers and embeddings; recurrent
    layers stay as they are.

    Args:
        model: with ``encoder`` and perhaps ``decoder``.
        tokens: of the table, and which rows they have below 32 bits.

    Raises:
        UserError: there is no decoder with a stack of layers, it lacks a depth or a width,
            ``table`` or ``rare`` does not divide the width of a table, or ``step`` has no number
            for a weight.
    """
    stack = over_model(model)
    if stack is None:
        return
    if stack.options.has_decoders:
        _nest_decoder(model, stack)
    if set(stack.options.bits) == {32}:
        return
    found = [
        Layer(name, layer, "other")
        for name, layer in model.named_modules()
        if _is_matrix(layer) and part_of(chain_of(layer, "weight") or (), NestedWeight) is None
    ]
    for group in tied_groups(model, found):
        modules = [layer.module for layer in group]
        round_layers(modules, _rounded(group[0], stack, tokens), stack.selection, stack.options)
    if stack.options.scale == "deviation":
        _set_steps(model, stack.options)


def _set_steps(model: Any, options: NestedOptions) -> None:
    """Give every rounded weight the step of its name.

    Raises:
        UserError: ``step`` has none for a name, or a key that no name has.
    """
    used = set()
    for name, part in model.named_modules():
        if isinstance(part, NestedWeight):
            key, part.step = options.step_of(name.replace(".parametrizations", ""))
            used.add(key)
    for key in options.step if isinstance(options.step, Mapping) else ():
        if key not in used:
            raise UserError(f"nested: step: no weight is called {key}*, or a longer key has it")


def _nest_decoder(model: Any, stack: NestedStack) -> None:
    """Let the members of a family differ in their decoders, in place."""
    options, selection = stack.options, stack.selection
    decoder = getattr(model, "decoder", None)
    if decoder is None:
        raise UserError("nested: decoder_depths and decoder_widths need an attention decoder")
    name, layers = find_stack(decoder)
    found = matrix_layers(f"decoder.{name}", layers)
    encoder = Stack(len(stack._modules), stack.family[0].width)
    sizes = Stack(len(layers._modules), inner_width(found))
    selection.family = family_members(options, encoder, sizes)
    selection.member = selection.family[0]
    rounded = set(options.bits) != {32}
    narrowed = len({member.decoder_width for member in selection.family}) > 1
    if narrowed and options.sort_units:
        sort_units(found)
    for group in tied_groups(model, found):
        role = group[0].site if narrowed else "other"
        if rounded or role != "other":
            modules = [layer.module for layer in group]
            nest_layers(modules, selection, options, role, "decoder_width")
    for member in selection.family:
        refuse_alone(layers, member.decoder or ())
    kind = type(layers)
    nested: Any = layers
    nested.__class__ = type(f"Nested{kind.__name__}", (NestedDecoder, kind), {})
    nested.selection, nested.plain_class = selection, kind


def _is_matrix(layer: Any) -> bool:
    known = is_matrix_layer(layer) or isinstance(layer, nn.Embedding)
    return known and layer.weight.numel() >= _SMALL


def _coded_table(layer: Layer, stack: NestedStack, tokens: TableTokens) -> NestedTable:
    table: Any = layer.module
    sizes, rare = stack.options.table_sizes, stack.options.rare
    for size in {*sizes.values(), rare or 1}:
        if table.embedding_dim % size:
            name = "rare" if size == rare else "table"
            raise UserError(
                f"nested: {name}: {size} does not divide the width {table.embedding_dim} "
                f"of {layer.name}"
            )
    masks = (tokens.kept, tokens.common, tokens.frequencies)
    if not all(mask is None or len(mask) == len(table.weight) for mask in masks):
        tokens = ALL_ALIKE  # of another decoder, such as a transducer's predictor
    step = stack.options.table_step
    return NestedTable(table.weight, stack.selection, sizes, tokens, rare, step)


def _rounded(layer: Layer, stack: NestedStack, tokens: TableTokens) -> nn.Module:
    """What rounds the weight of a layer."""
    module: Any = layer.module
    position = "position" in layer.name
    if isinstance(module, nn.Embedding) and stack.options.table and not position:
        return _coded_table(layer, stack, tokens)
    if position and isinstance(module, nn.Embedding) and are_sinusoids(module.weight):
        return NestedPositions(module.weight, stack.selection)
    least = _POSITION_BITS if position else LEAST_BITS
    return NestedWeight(module.weight, stack.selection, stack.options, None, least)
