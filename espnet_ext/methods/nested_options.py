"""The options of a nested family, and the sub-networks that they describe (arXiv 2406.10160).

A member of a family is a depth (some of the layers), a width (the leading inner units of every
feed-forward network) and a precision (bits of the weights). All members share one set of
parameters; the first is the largest network, the teacher of the others.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.quantise import QuantConf

NORMS = ("own", "layer")
FORMS = ("train", "plain")
ALL = "all"
_NAME = re.compile(r"(?:(\d+)L|L(\d+(?:\.\d+)*))(?:-(\d+))?-(\d+)b")
_WEIGHTS = ("sub_weight", "kl_ctc", "kl_decoder")


@dataclass(frozen=True)
class Member:
    """One sub-network.

    Attributes:
        layers: indices of its layers in the whole stack, from 0.
        width: inner units of its feed-forward networks; None where the encoder has none.
        bits: of the weights of its blocks.
    """

    layers: tuple[int, ...]
    width: int | None
    bits: int

    @property
    def name(self) -> str:
        """As in 12L-1024-4b; L0.2.5-1024-4b if its layers are not the first ones."""
        first = self.layers == tuple(range(len(self.layers)))
        depth = f"{len(self.layers)}L" if first else f"L{'.'.join(map(str, self.layers))}"
        width = "" if self.width is None else f"-{self.width}"
        return f"{depth}{width}-{self.bits}b"


@dataclass(frozen=True)
class NestedOptions:
    """Options of a family, as written under ``encoder_conf: {nested: ...}``.

    The loss of a step is that of the largest network, plus over the sub-networks of the step
    sub_weight x theirs + kl_ctc x KL(CTC) + kl_decoder x KL(decoder) (arXiv 2406.10160; its weights
    are not known, 0.5 and 1.0 are those of its authors' next paper, arXiv 2505.21245). A KL is that
    of the sub-network's posteriors from the largest's, whose gradient is stopped.

    Attributes:
        depths: each a number d, for the first d layers, or a list of layers (from 0). One of them
            is the whole stack. Default: the whole stack alone.
        widths: inner units of the feed-forward networks, the leading ones; one of them is all of
            them. Default: all of them alone.
        bits: 32, 8, 4, 2.
        per: one scale for each ``channel`` of a weight's output, or for the whole ``tensor``.
        scale: by the ``maximum`` of the weight, or ``learnt``.
        norm: batch normalisations have their ``own`` statistics for each sub-network, or become
            normalisations of each frame (``layer``), which have none.
        sample: sub-networks of a training step: ``all``, or a number n: the smallest and n drawn
            (over several GPUs with learnt scales, some of which a step then does not use, take
            ESPnet's ``unused_parameters: true``).
        seed: of the draws.
        sub_weight, kl_ctc, kl_decoder: see above.
        weights: sub_weight of single members, by name.
        mean: divide what the sub-networks add by their number.
        form: ``train``, or ``plain``: no family, only the normalisations of ``norm``.
    """

    depths: Sequence[int | Sequence[int]] = ()
    widths: Sequence[int] = ()
    bits: Sequence[int] = (32,)
    per: str = "channel"
    scale: str = "maximum"
    norm: str = "own"
    sample: str | int = ALL
    seed: int = 0
    sub_weight: float = 0.5
    kl_ctc: float = 1.0
    kl_decoder: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    mean: bool = False
    form: str = "train"

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "bits"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or (name == "bits" and not value):
                raise UserError(f"nested: {name} must be a list, not {value!r}")
        for depth in self.depths:
            listed: Any = depth if isinstance(depth, list | tuple) and depth else [depth]
            if not all(map(_is_index, listed)) or depth == 0:
                raise UserError(
                    "nested: a depth is a number of layers or a list of layers, as in "
                    f"[12, 8] or [[0, 1, 4], 6], not {depth!r}"
                )
        for width in self.widths:
            if not _is_index(width) or width == 0:
                raise UserError(f"nested: a width is a whole number of at least 1, not {width!r}")
        for bits in self.bits:
            _refuse_quantisation(bits, self.per, self.scale)
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        for name, known in (("norm", NORMS), ("form", FORMS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"nested: unknown {name} {nearest(str(value), known)}")
        if self.sample != ALL and not _is_index(self.sample):
            raise UserError(
                f"nested: sample must be {ALL} or a number of sub-networks, not {self.sample!r}"
            )
        if type(self.mean) is not bool:
            raise UserError(f"nested: mean must be true or false, not {self.mean!r}")

    def _check_numbers(self) -> None:
        if not _is_index(self.seed):
            raise UserError(f"nested: seed must be a whole number, not {self.seed!r}")
        if not isinstance(self.weights, Mapping):
            raise UserError(
                f"nested: weights are members and numbers, as in {{4L-384-8b: 1.0}}, not "
                f"{self.weights!r}"
            )
        given = {name: getattr(self, name) for name in _WEIGHTS}
        given |= {f"weights: {name}": value for name, value in self.weights.items()}
        for name, value in given.items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise UserError(f"nested: {name} must be a number of at least 0, not {value!r}")


def members(options: NestedOptions, layers: int, width: int | None) -> tuple[Member, ...]:
    """All sub-networks of an encoder, the largest first and the smallest last.

    Args:
        options: of the family.
        layers: of the encoder.
        width: inner units of its feed-forward networks; None if it has none.

    Raises:
        UserError: a depth or width that the encoder lacks, the largest is not among them, or
            ``weights`` names no sub-network.
    """
    whole = tuple(range(layers))
    depths = {_layers(depth, layers) for depth in options.depths} or {whole}
    if whole not in depths:
        raise UserError(f"nested: depths must contain {layers}: the largest network has all layers")
    if options.widths and width is None:
        raise UserError("nested: widths are of feed-forward networks, this encoder has none")
    widths: set[int | None] = set(options.widths) or {width}
    for one in options.widths:
        if width is not None and one > width:
            raise UserError(f"nested: width {one} is more than the encoder's {width}")
    if width not in widths:
        raise UserError(f"nested: widths must contain {width}: the largest network has all units")
    found = [Member(d, w, b) for d in depths for w in widths for b in set(options.bits)]
    found.sort(key=lambda m: (len(m.layers), m.width or 0, m.bits, m.layers), reverse=True)
    names = [member.name for member in found]
    for name in options.weights:
        if name not in names[1:]:
            raise UserError(f"nested: weights: unknown sub-network {nearest(str(name), names[1:])}")
    return tuple(found)


def find_member(family: Sequence[Member], name: str) -> Member:
    """The member called ``name``; ``merged`` is the largest.

    Raises:
        UserError: the family lacks it.
    """
    known = {"merged": family[0]} | {member.name: member for member in family}
    if name not in known:
        raise UserError(f"the family has no sub-network {nearest(name, known)}")
    return known[name]


def parse_name(name: str) -> Member:
    """The member of any family that has this name.

    Raises:
        UserError: it is no member's name.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"'{name}' is not the name of a sub-network, as 12L-1024-4b is")
    depth, listed, width, bits = found.groups()
    layers = tuple(map(int, listed.split("."))) if depth is None else tuple(range(int(depth)))
    return Member(layers, None if width is None else int(width), int(bits))


def of_step(options: NestedOptions, family: Sequence[Member], step: int) -> list[Member]:
    """The members of training step ``step``, the largest first.

    With ``sample: n`` these are the largest, the smallest and n others, drawn without
    replacement; the draw depends on the seed and the step alone, so a training that is started
    again goes on with the same.
    """
    if options.sample == ALL or len(family) <= 2 + int(options.sample):
        return list(family)
    # Two large primes: neighbouring steps and seeds get unrelated generators.
    start = (options.seed * 1_000_003 + step * 7_919 + 1) % 2**63
    drawn = torch.randperm(len(family) - 2, generator=torch.Generator().manual_seed(start))
    chosen = sorted(drawn[: int(options.sample)].tolist())
    return [family[0], *(family[1 + place] for place in chosen), family[-1]]


def _layers(depth: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """The layers of a depth."""
    if isinstance(depth, int):
        if depth > layers:
            raise UserError(f"nested: depth {depth} is more than the encoder's {layers} layers")
        return tuple(range(depth))
    listed = tuple(depth)
    if list(listed) != sorted(set(listed)) or listed[-1] >= layers:
        raise UserError(f"nested: layers {list(listed)} must rise and be of 0 to {layers - 1}")
    return listed


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _refuse_quantisation(bits: int, per: str, scale: str) -> None:
    try:
        QuantConf(bits, per, scale)
    except UserError as error:
        raise UserError(str(error).replace("quantisation:", "nested:", 1)) from None
