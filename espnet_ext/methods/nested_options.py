"""The options of a nested family, and the sub-networks that they describe (arXiv 2406.10160).

A member of a family is a depth (some of the layers), a width (the leading inner units of every
feed-forward network) and a precision (bits of the weights). All members share one set of
parameters; the first is the largest network, the teacher of the others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.options import (
    NUMBER,
    POSITIVE,
    WHOLE,
    Number,
    Options,
    Positive,
    Whole,
)
from espnet_ext.methods.quantise import GROUP, Per, check_bits

ALL: Literal["all"] = "all"
_PART = r"(?:(\d+)L|L(\d+(?:\.\d+)*))(?:-(\d+))?"  # depth or layers, width
_NAME = re.compile(rf"{_PART}(?:\+{_PART})?-(\d+)b")
_DEPTHS = "a list of numbers of layers or lists of layers, as in [12, 8] or [[0, 1, 4], 6]"
_TABLE = f"{POSITIVE}, one for each precision below 32 bits as in {{4: 3, 2: 8}}, or null"
_WEIGHTS = "members and numbers of at least 0, as in {4L-384-8b: 1.0}"

_STEP = "a number above 0, or one for each part of a model as in {encoder: 0.5, decoder: 1.0}"
Step = Annotated[int | float, Field(gt=0, allow_inf_nan=False)]
Depth = Positive | Annotated[Sequence[Whole], Field(min_length=1)]


@dataclass(frozen=True)
class Member:
    """One sub-network."""

    layers: tuple[int, ...]  # indices in the whole stack, from 0
    width: int | None  # inner units of its feed-forward networks; None if the encoder has none
    bits: int  # of the weights of its blocks
    decoder: tuple[int, ...] | None = None  # its layers; None: those of the largest
    decoder_width: int | None = None  # None: that of the largest

    @property
    def name(self) -> str:
        """As in 12L-1024-4b; L0.2.5-1024-4b if its layers are not the first ones.

        Where decoders differ too: 12L-1024+2L-512-4b.
        """
        encoder = _part_name(self.layers, self.width)
        decoder = "" if self.decoder is None else _part_name(self.decoder, self.decoder_width)
        return f"{encoder}{'+' * bool(decoder)}{decoder}-{self.bits}b"


def _part_name(layers: tuple[int, ...], width: int | None) -> str:
    """Name of a depth, or of layers that are not the first ones, and of a width."""
    first = layers == tuple(range(len(layers)))
    depth = f"{len(layers)}L" if first else f"L{'.'.join(map(str, layers))}"
    return depth if width is None else f"{depth}-{width}"


class NestedOptions(Options):
    """Options of a family, as written under ``encoder_conf: {nested: ...}``.

    The loss of a step is that of the largest network, plus for each sub-network of the step
    sub_weight x its loss + kl_ctc x KL(CTC) + kl_decoder x KL(decoder) (arXiv 2406.10160; its
    weights are not published, 0.5 and 1.0 are those of its authors' next paper, arXiv 2505.21245).
    A KL is from the largest network's posteriors, whose gradient is stopped, to the sub-network's.

    Attributes:
        depths: each a number d, for the first d layers, or a list of layers (from 0). One of them
            is the whole stack. Default: the whole stack only.
        widths: inner units of the feed-forward networks, the leading ones; one of them is the
            full width. Default: the full width only.
        bits: 32, 8, 6, 4, 3, 2.
        over: the precision concerns the blocks of the ``encoder`` or every
            matrix of the ``model``: front end, decoder, joiner and tables of tokens too.
        decoder_depths, decoder_widths: of ``over: model``; like depths and widths, of an attention
            decoder. Default: the whole decoder only.
        per: one scale for each ``channel`` of a weight's output, for the whole ``tensor``, or for
            each ``group`` of its inputs.
        group: inputs of such a group.
        members: names of the sub-networks of the family other than the largest. Default: all
            combinations.
        sort_units: order the inner units of feed-forward networks by importance when the family
            starts from trained layers, so that a narrow member has the most important ones. The
            largest network computes the same. Importance: norm of a unit's inputs times that of
            its outputs.
        table: of ``over: model``; numbers of a token's embedding that share one byte in members
            below 32 bits (``methods.codes``), as 4, or for each of these precisions, as
            {4: 3, 3: 4}; null: its rows are rounded like other weights.
        table_step: of ``table`` 1 to 4, without ``rare``; codes stand for numbers in equal steps of
            so many root mean squares of the table without its mean row, as 1.5 with ``table: 2``
            and ``recipe: {huffman: true}``; null: for vectors that are fitted.
        rare: of ``table``; such numbers of the rows of all tokens that neither ``common`` nor
            ``frequent`` names, as 6 with ``table: 3``. The vectors of these bytes are not trained.
        common: of ``rare``; the file of the tokens that the training text has, which stage 3
            writes: data/token_list/<model>/common_<training set>.txt.
        frequent: of ``rare``; tokens of lower ids are common too. A BPE vocabulary lists its most
            frequent merges first, so the ids rank the words that the training text lacks.
        letters: of ``table``; characters of the texts. Below 32 bits all tokens with other
            characters share one row, so that files do not hold theirs.
        scale: by the ``maximum`` of the weight, ``learnt``, or by its ``deviation``: most integers
            are small then, for ``recipe: {huffman: true}``.
        step: of ``scale: deviation``; between integers, in root mean squares of the weights that
            share a scale: a larger step makes a smaller file. Of ``over: model`` also by beginnings
            of names, as {encoder: 0.5, encoder*conv: 0.2, decoder: 1}; the longest key decides.
        norm: batch normalisations have separate statistics for each sub-network (``own``), or
            are replaced by a normalisation of each frame (``layer``), which has none.
        sample: sub-networks of a training step: ``all``, or a number n: the smallest and n drawn
            at random (with learnt scales on several GPUs, a step does not use all scales: set
            ESPnet's ``unused_parameters: true``).
        seed: of the draws.
        sub_weight, kl_ctc, kl_decoder: see above.
        weights: sub_weight of single members, by name.
        mean: divide the sum over the sub-networks by their number.
        form: ``train``, or ``plain``: no family, only the normalisations of ``norm``.
    """

    method = "nested"
    depths: Sequence[Depth] = Field((), description=_DEPTHS)
    widths: Sequence[Positive] = Field((), description="a list of whole numbers of at least 1")
    bits: Sequence[Any] = Field((32,), min_length=1, description="a list of bits")
    over: Literal["encoder", "model"] = "encoder"
    decoder_depths: Sequence[Depth] = Field((), description=_DEPTHS)
    decoder_widths: Sequence[Positive] = Field((), description="a list of whole numbers")
    per: Literal["tensor", "channel", "group"] = "channel"
    group: Annotated[int, Field(ge=2)] = Field(GROUP, description="a whole number of at least 2")
    members: Sequence[str] = Field((), description="a list of names, as in [4L-384-8b]")
    sort_units: bool = Field(False, description="true or false")
    table: Positive | Mapping[int, Positive] | None = Field(None, description=_TABLE)
    table_step: Step | None = Field(None, description="a number above 0, or null")
    rare: Positive | None = Field(None, description=f"{POSITIVE} or null")
    common: str | None = Field(None, description="a path or null")
    frequent: Whole = Field(0, description=WHOLE)
    letters: str | None = Field(None, min_length=1, description="characters, or null")
    scale: Literal["maximum", "learnt", "deviation"] = "maximum"
    step: Step | Annotated[Mapping[str, Step], Field(min_length=1)] = Field(0.5, description=_STEP)
    norm: Literal["own", "layer"] = "own"
    sample: Literal["all"] | Whole = Field(ALL, description="all or a number of sub-networks")
    seed: Whole = Field(0, description=WHOLE)
    sub_weight: Number = Field(0.5, description=NUMBER)
    kl_ctc: Number = Field(1.0, description=NUMBER)
    kl_decoder: Number = Field(1.0, description=NUMBER)
    weights: Mapping[str, Number] = Field(default_factory=dict, description=_WEIGHTS)
    mean: bool = Field(False, description="true or false")
    form: Literal["train", "plain"] = "train"

    @property
    def has_decoders(self) -> bool:
        """True if members differ in their decoders."""
        return bool(self.decoder_depths or self.decoder_widths)

    @property
    def table_sizes(self) -> dict[int, int]:
        """Numbers of a row of the table of tokens that share a byte, by bits.

        Raises:
            UserError: ``table`` lacks a precision.
        """
        rounded = sorted(set(self.bits) - {32})
        if not isinstance(self.table, Mapping):
            return {} if self.table is None else dict.fromkeys(rounded, self.table)
        for bits in rounded:
            if bits not in self.table:
                raise UserError(f"nested: table has no size for {bits} bits: give one, as in 4")
        return {bits: self.table[bits] for bits in rounded}

    def step_of(self, name: str) -> tuple[str, float]:
        """The step of a weight of this name in the model, and its key; UserError if it has none."""
        if not isinstance(self.step, Mapping):
            return "", self.step
        fitting = [key for key in self.step if fnmatchcase(name, f"{key}*")]
        if not fitting:
            raise UserError(f"nested: step: no key begins the name {name}: add one")
        key = max(fitting, key=len)
        return key, self.step[key]

    @property
    def grain(self) -> Per:
        """The part of a weight that has a scale, as ``methods.quantise`` names it."""
        return self.group if self.per == "group" else self.per

    @field_validator("table", mode="before")
    @classmethod
    def _bits_as_keys(cls, value: Any) -> Any:
        """ESPnet's trainer writes keys of configs as text."""
        if not isinstance(value, Mapping):
            return value
        return {int(k) if str(k).isdecimal() else k: size for k, size in value.items()}

    @field_validator("bits")
    @classmethod
    def _known_bits(cls, values: Sequence[Any]) -> Sequence[int]:
        return [check_bits(bits) for bits in values]


@dataclass(frozen=True)
class Stack:
    """Sizes of a stack of layers."""

    layers: int
    width: int | None  # inner units of its feed-forward networks; None if it has none


def family_members(
    options: NestedOptions, encoder: Stack, decoder: Stack | None = None
) -> tuple[Member, ...]:
    """List all sub-networks of a model, the largest first and the smallest last.

    Args:
        options: of the family.
        encoder: its sizes.
        decoder: those of the decoder, if the options are of decoders too.

    Raises:
        UserError: a depth or width that a stack lacks, the largest is not among them, or
            ``weights`` names no sub-network.
    """
    parts = _parts(options, encoder, options.depths, options.widths, "")
    second: list[tuple[Any, int | None]] = [(None, None)]
    if decoder is not None:
        given = options.decoder_depths, options.decoder_widths
        second = _parts(options, decoder, *given, "decoder_")
    bits = set(options.bits)
    found = [Member(*one, b, *other) for one in parts for other in second for b in bits]
    found.sort(key=_size, reverse=True)
    if options.has_decoders and decoder is None:  # the names are known only with the decoder
        return tuple(found)
    found = _chosen(options, found)
    names = [member.name for member in found]
    for name in options.weights:
        if name not in names[1:]:
            raise UserError(f"nested: weights: unknown sub-network {nearest(str(name), names[1:])}")
    return tuple(found)


def _chosen(options: NestedOptions, found: Sequence[Member]) -> list[Member]:
    """The largest sub-network and those that ``members`` names; all if it names none."""
    names = [member.name for member in found]
    for name in options.members:
        if name not in names:
            raise UserError(f"nested: members: unknown sub-network {nearest(str(name), names)}")
    chosen = {names[0], *options.members} if options.members else set(names)
    return [member for member in found if member.name in chosen]


def _size(member: Member) -> tuple:
    """The key that members are sorted by."""
    decoder = member.decoder or ()
    sizes = len(member.layers), member.width or 0, len(decoder), member.decoder_width or 0
    return (*sizes, member.bits, member.layers, decoder)


def _parts(
    options: NestedOptions,
    stack: Stack,
    depths: Sequence[Depth],
    widths: Sequence[int],
    prefix: str,
) -> list[tuple[tuple[int, ...], int | None]]:
    """Layers and width of every part of a stack; ``prefix`` is that of the options' names."""
    whole, owner = tuple(range(stack.layers)), "decoder" if prefix else "encoder"
    listed = {_layers(depth, stack.layers, owner) for depth in depths} or {whole}
    if whole not in listed:
        raise UserError(
            f"nested: {prefix}depths must contain {stack.layers}: "
            "the largest network has all layers"
        )
    if widths and stack.width is None:
        raise UserError(
            f"nested: {prefix}widths are of feed-forward networks, this {owner} has none"
        )
    found: set[int | None] = set(widths) or {stack.width}
    # A decoder that all members have whole may have other sizes: a scale for each channel there.
    for width in widths if prefix else filter(None, found):
        if stack.width is not None and width > stack.width:
            raise UserError(f"nested: width {width} is more than the {owner}'s {stack.width}")
        if options.per == "group" and width % options.group:
            raise UserError(f"nested: group: {options.group} does not divide the width {width}")
    if stack.width not in found:
        raise UserError(
            f"nested: {prefix}widths must contain {stack.width}: the largest network has all units"
        )
    return [(layers, width) for layers in listed for width in found]


def find_member(family: Sequence[Member], name: str) -> Member:
    """Return the member called ``name``; ``merged`` is the largest. May raise UserError."""
    known = {"merged": family[0]} | {member.name: member for member in family}
    if name not in known:
        raise UserError(f"the family has no sub-network {nearest(name, known)}")
    return known[name]


def parse_name(name: str) -> Member:
    """Return the member of any family that has this name. May raise UserError."""
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"'{name}' is not the name of a sub-network, as 12L-1024-4b is")
    *encoder, depth, listed, width, bits = found.groups()
    decoder: tuple[tuple[int, ...] | None, int | None] = (None, None)
    if depth is not None or listed is not None:
        decoder = _parsed_part(depth, listed, width)
    return Member(*_parsed_part(*encoder), int(bits), *decoder)


def _parsed_part(
    depth: str | None, listed: str | None, width: str | None
) -> tuple[tuple[int, ...], int | None]:
    """Layers and width of a part of a name."""
    layers = tuple(range(int(depth or 0))) if listed is None else tuple(map(int, listed.split(".")))
    return layers, None if width is None else int(width)


def members_of_step(options: NestedOptions, family: Sequence[Member], step: int) -> list[Member]:
    """List the members of training step ``step``, the largest first.

    With ``sample: n`` these are the largest, the smallest and n others, drawn without
    replacement. A draw depends on the seed and the step only, so a resumed training draws the
    same members.
    """
    if options.sample == ALL or len(family) <= 2 + int(options.sample):
        return list(family)
    # Two large primes: neighbouring steps and seeds get unrelated generators.
    start = (options.seed * 1_000_003 + step * 7_919 + 1) % 2**63
    drawn = torch.randperm(len(family) - 2, generator=torch.Generator().manual_seed(start))
    chosen = sorted(drawn[: int(options.sample)].tolist())
    return [family[0], *(family[1 + place] for place in chosen), family[-1]]


def _layers(depth: int | Sequence[int], layers: int, owner: str) -> tuple[int, ...]:
    """Return the layers of a depth."""
    if isinstance(depth, int):
        if depth > layers:
            raise UserError(f"nested: depth {depth} is more than the {owner}'s {layers} layers")
        return tuple(range(depth))
    listed = tuple(depth)
    if list(listed) != sorted(set(listed)) or listed[-1] >= layers:
        raise UserError(f"nested: layers {list(listed)} must rise and be of 0 to {layers - 1}")
    return listed
