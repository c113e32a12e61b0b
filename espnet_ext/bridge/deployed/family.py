"""The family of a trained model in one file (``formats.family``), and members out of it."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from espnet_ext.bridge.build import with_statistics
from espnet_ext.bridge.checkpoint import build_for, fill, load_model, read_config
from espnet_ext.bridge.configs.footprint import is_classifier
from espnet_ext.bridge.deployed.bundle import KEY
from espnet_ext.bridge.deployed.folder import (
    Speech,
    portable_arguments,
    stock_arguments,
)
from espnet_ext.bridge.deployed.variants import computing, deploy_variant, file_bytes
from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path
from espnet_ext.formats.bits import quantised_state
from espnet_ext.formats.family import Entry, FamilyFile, choose, write_family
from espnet_ext.formats.packed import State, dequantised
from espnet_ext.formats.portable import gather, located, with_tokens
from espnet_ext.methods.deploy import footprint
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.verify import largest_difference, refuse_difference


class Loaded(NamedTuple):
    """A model out of a family file.

    Attributes:
        model: ESPnet's, in evaluation mode, in float32.
        entry: the member that it is: ``entry.member.name``, ``entry.bytes``, ``entry.config``.
    """

    model: nn.Module
    entry: Entry


def load(
    file: str | Path,
    depth: int | Sequence[int] | None = None,
    width: int | None = None,
    bits: int | None = None,
    max_bytes: int | None = None,
) -> Loaded:
    """Load the best member of a family file that fits what is asked.

    Best is the member whose posteriors are nearest to the largest member's on speech, as the file
    has it from when it was written (``formats.family.choose``). The weights are compared with their
    SHA-256 first. Once they are loaded they are float32: depth and width of a small member save
    memory and time, its bits save bytes on disk.

        model, entry = load("exp/nested_xs/deploy/family/family.safetensors", max_bytes=2**20)

    Args:
        file: that ``espnet-ext deploy --family`` wrote.
        depth: number of layers, or the list of layers (from 0); None: any.
        width: inner units of the feed-forward networks; None: any.
        bits: of the weights, as in 4; None: any.
        max_bytes: largest size of the file that stage 5 would deploy the member to; None: any.

    Raises:
        UserError: the family lacks such a member, none is small enough, or the file is truncated,
            was changed or holds NaN.
    """
    read = FamilyFile(Path(file))
    entry = choose(read.entries, depth, width, bits, max_bytes)
    return Loaded(_model(read, entry), entry)


def _model(read: FamilyFile, entry: Entry) -> nn.Module:
    """The model of a member of a family file."""
    state = dequantised(read.state(entry))
    arguments = with_tokens(located(entry.config, read.path.parent))
    with tempfile.TemporaryDirectory() as folder:
        arguments = with_statistics(arguments, state, Path(folder))
        model = build_for(arguments, state, read.path)
    fill(model, state, read.path)
    return model.eval()


@dataclass
class _Member:
    """A member on its way into a file.

    Attributes:
        entry: its place in the file's list.
        state: its tensors and integers.
        outputs: of the training model on the speech.
        parameters: of the deployed model.
        difference: largest, of the outputs of the member that was read back.
    """

    entry: Entry
    state: State
    outputs: list[Tensor]
    parameters: int
    difference: float = 0.0

    def record(self) -> dict[str, Any]:
        """The entry of family.json."""
        return {
            "name": self.entry.member.name,
            "parameters": self.parameters,
            "bytes": self.entry.bytes,
            "divergence": self.entry.divergence,
            "max_difference": self.difference,
        }


@torch.no_grad()
def write_family_models(
    config: Path,
    checkpoint: Path,
    speech: Speech,
    path: Path,
    about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Write the family file of a trained model, verified.

    The file appears only if every member that is loaded from it has to the last bit the weights
    that stage 5 deploys, and on real speech the output of the training model.

    Args:
        config: the experiment's config.yaml.
        checkpoint: the averaged model.
        speech: for the verification; also the divergences of members are measured on it.
        path: of the file; the files that its config names are written next to it.
        about: see ``bundle.about``; None: nothing is said.

    Returns:
        For each member its name, parameters, bytes of a separate file, divergence, and largest
        difference from the training model.

    Raises:
        UserError: the model is no family, weights that are not finite, or outputs that differ by
            more than TOLERANCE.
    """
    trained = load_model(config, checkpoint)
    stack = nested_stack(trained)
    if stack is None:
        raise UserError(f"{config} trains no family: choose an encoder nested_*")
    for option, value in (("over", "model"), ("per", "group")):
        if getattr(stack.options, option) == value:
            raise UserError(
                f"a family {option}: {value} has no file of all members: deploy them one by one"
            )
    with tempfile.TemporaryDirectory() as gathered:
        arguments = read_config(config)
        # The statistics are among the weights.
        conf = arguments.get("normalize_conf") or {}
        arguments["normalize_conf"] = {k: v for k, v in conf.items() if k != "stats_file"}
        arguments = gather(arguments, Path(gathered), list_tokens=True) | {KEY: about or {}}
        made = _write(trained, stack.family, arguments, speech, path)
        shutil.copytree(gathered, path.parent, dirs_exist_ok=True)
    return [one.record() for one in made]


def _write(
    trained: nn.Module,
    family: Sequence[Member],
    arguments: dict[str, Any],
    speech: Speech,
    path: Path,
) -> list[_Member]:
    """Write the members of a family into a file; return them."""
    made: list[_Member] = []
    reference: list[Tensor | None] = []
    for member in family:
        one, found = _deployed(trained, member, arguments, speech)
        reference = reference or found
        one.entry = replace(one.entry, divergence=mean_divergence(reference, found))
        made.append(one)
    with atomic_path(path) as temporary:
        write_family([(one.entry, one.state) for one in made], temporary)
        read = FamilyFile(temporary)
        for entry, one in zip(read.entries, made, strict=True):
            outputs = speech.outputs(_model(read, entry), entry.config.get("input_size"))
            one.difference = largest_difference(outputs, one.outputs)
            refuse_difference(one.difference, entry.member.name)
    return made


def _deployed(
    trained: nn.Module, member: Member, arguments: dict[str, Any], speech: Speech
) -> tuple[_Member, list[Tensor | None]]:
    """A member, and its posteriors on each utterance."""
    made = deploy_variant(trained, member.name)
    deployed = made.module
    config = portable_arguments(stock_arguments(arguments, member.name), deployed)
    with computing(trained, member.name):
        outputs = speech.outputs(trained, config.get("input_size"))
    state = quantised_state(deployed, {}) if made.state is None else made.state
    size = file_bytes(made, member.name)
    one = _Member(Entry(member, size, None, config), state, outputs, footprint(deployed)["total"])
    return one, [posteriors(deployed, output) for output in outputs]


@torch.no_grad()
def posteriors(model: Any, encoded: Tensor) -> Tensor | None:
    """Log posteriors (frames, V) of an encoder output (1, frames, width).

    Of the CTC output; of a classifier (1, classes), whose logits are given. None for a model that
    has neither.
    """
    if is_classifier(model):
        return encoded.log_softmax(-1)
    return None if getattr(model, "ctc", None) is None else model.ctc.log_softmax(encoded)[0]


def mean_divergence(first: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float | None:
    """KL(first || other) of log posteriors, in nats, the mean over the frames of all utterances."""
    total, frames = 0.0, 0
    for p, q in zip(first, other, strict=True):
        if p is None or q is None:
            return None
        total += (p.exp() * (p - q)).sum().item()
        frames += len(p)
    return max(total / frames, 0.0)
