"""Stacks run on a set: similarities of their layers, and decisions after pruning."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from espnet_ext.analysis.decoder_layers import DecoderLayers, Outputs, teacher_forced
from espnet_ext.analysis.measure import Measure
from espnet_ext.analysis.similarity import LayerSimilarity, Similarities
from espnet_ext.bridge.checkpoint import load_model, read_config
from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.data.audio import read_wave
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.pretrained.mimicked import MimickedStack
from espnet_ext.encoders.pretrained.stack import RATE, Stack
from espnet_ext.errors import UserError
from espnet_ext.models.whisper_decoder import WhisperDecoder

_FORWARD = 16  # utterances at once through a model: of like length, so little is padding

Rows = Sequence[tuple[str, str]]  # utterance, path of its audio


def read_waves(rows: Rows, seconds: float | None = None) -> list[Tensor]:
    """Samples (samples,) of utterances at 16 kHz, cut off after ``seconds`` if given."""
    most = None if seconds is None else round(seconds * RATE)
    return [torch.from_numpy(read_wave(path, name, RATE))[:most] for name, path in rows]


def draw_batches(rows: Rows, measure: Measure, repeat: int = 0) -> Sequence[Rows]:
    """Batches of utterances, drawn at random without replacement; each repeat draws others.

    What is left of the set beyond whole batches is not used, unless the set is smaller than one
    batch: batches of another size have other similarities (a biased estimate).
    """
    order, size = list(rows), measure.batch_size
    random.Random(measure.seed + repeat).shuffle(order)
    if len(order) <= size:
        return [order]
    batches = [order[k : k + size] for k in range(0, len(order) - size + 1, size)]
    return batches[: measure.batches]


def stack_outputs(stack: Stack) -> Outputs:
    """Outputs of the layers of an encoder's stack."""
    device = next(stack.parameters()).device

    def outputs(names: Sequence[str], waves: Sequence[Tensor]) -> list[list[Tensor]]:
        x, lengths = _front(stack, waves, device)
        frames = lengths.tolist()
        hidden = stack.hidden(x, lengths)
        return [[one[:length] for one, length in zip(h, frames, strict=True)] for h in hidden]

    return outputs


def layers_of(
    recogniser: Decoder, part: str, texts: Mapping[str, str]
) -> tuple[Stack | DecoderLayers, Outputs]:
    """The layers of a part of a recogniser, and their outputs; a decoder reads the ``texts``."""
    if part == "decoder":
        return DecoderLayers(recogniser), teacher_forced(recogniser, texts)
    stack = recogniser.model.encoder.stack
    return stack, stack_outputs(stack)


@torch.no_grad()
def compare_layers(
    outputs: Outputs, batches: Sequence[Rows], measure: Measure, title: str = "similarity"
) -> Similarities:
    """Similarities of the outputs of all layers over batches of utterances."""
    found = LayerSimilarity(measure.k, measure.time)
    for batch in tqdm(batches, desc=title):
        names = [name for name, _ in batch]
        waves = zip(names, read_waves(batch, measure.seconds), strict=True)
        ordered = sorted(waves, key=lambda item: len(item[1]))
        parts = [
            outputs(*zip(*ordered[start : start + _FORWARD], strict=True))
            for start in range(0, len(ordered), _FORWARD)
        ]
        layers = [[one for part in same for one in part] for same in zip(*parts, strict=True)]
        steps = torch.tensor([len(one) for one in layers[0]])
        found.add([pad_sequence(layer, batch_first=True) for layer in layers], steps)
    return found.result()


def _front(stack: Stack, waves: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(wave) for wave in waves], device=device)
    return stack.front(pad_sequence(list(waves), batch_first=True).to(device), lengths)


def load_probe(folder: Path) -> tuple[Any, list[str]]:
    """Load a deployed classifier whose encoder is a stack, and the names of its classes.

    Raises:
        UserError: not deployed, or another kind of model.
    """
    if not (folder / "model.pth").is_file():
        raise UserError(f"no {folder}/model.pth; run stage 5")
    model: Any = load_model(folder / "config.yaml", folder / "model.pth")
    arguments = read_config(folder / "config.yaml")
    if not isinstance(model.encoder, StackEncoder) or not hasattr(model, "classification_type"):
        raise UserError(f"{folder} is no classifier with encoder: stack; prune a probe")
    if isinstance(model.encoder.stack, MimickedStack):
        raise UserError(f"{folder}: a mimic replaced its layers; prune the probe that it imitates")
    _refuse_no_last_output(model.encoder, folder)
    return model, [token for token in arguments["token_list"] if token != "<unk>"]


def load_recogniser(folder: Path, method: str, options: dict[str, Any], part: str) -> Decoder:
    """Load a deployed recogniser whose encoder is a stack, or whose decoder is Whisper's.

    Args:
        folder: of the model.
        method: that it decodes by.
        options: of the method.
        part: of ``measure.PARTS``: what is compared and removed.

    Raises:
        UserError: not deployed, or another kind of model.
    """
    if not (folder / "model.pth").is_file():
        raise UserError(f"no {folder}/model.pth; run stage 5, or choose a variant in float32")
    decoder = Decoder(folder, method, options, SpeechInput(RATE))
    encoder = decoder.model.encoder
    if part == "decoder":
        if not isinstance(decoder.model.decoder, WhisperDecoder):
            raise UserError(f"{folder} has no decoder: whisper; leave out --part decoder")
        return decoder
    if not isinstance(encoder, StackEncoder) or isinstance(encoder.stack, MimickedStack):
        raise UserError(f"{folder} has no encoder: stack with all its layers; prune another model")
    _refuse_no_last_output(encoder, folder)
    return decoder


def _refuse_no_last_output(encoder: StackEncoder, folder: Path) -> None:
    """Raise UserError unless what follows reads the output of the last layer alone."""
    for option, without in (("upto", None), ("outputs", 1)):
        if getattr(encoder, option) != without:
            raise UserError(
                f"{folder}: with {option} a model reads other outputs than the last layer's; "
                "train one without"
            )


@torch.no_grad()
def texts_after(
    decoder: Decoder,
    whole: Stack | DecoderLayers,
    removals: Sequence[tuple[int, ...]],
    rows: Rows,
) -> Mapping[tuple[int, ...], list[str]]:
    """Texts of a recogniser of every utterance, for each tuple of layers removed of ``whole``."""
    found: dict[tuple[int, ...], dict[str, str]] = {removed: {} for removed in removals}
    try:
        for batch in tqdm(list(_of_like_length(rows)), desc="pruning"):
            waves = [wave.numpy() for _, wave in batch]
            for removed in removals:
                _use(decoder, whole.remove(removed) if removed else whole)
                texts = decoder.texts(waves)
                found[removed] |= {name: t for (name, _), t in zip(batch, texts, strict=True)}
    finally:
        _use(decoder, whole)
    return {removed: [texts[name] for name, _ in rows] for removed, texts in found.items()}


def _use(decoder: Decoder, layers: Stack | DecoderLayers) -> None:
    """Let a recogniser have these layers of its encoder, or of its decoder."""
    if isinstance(layers, DecoderLayers):
        layers.decoder.layers = layers.layers
    else:
        decoder.model.encoder.stack = layers


@torch.no_grad()
def classes_after(
    model: nn.Module, removals: Sequence[tuple[int, ...]], rows: Rows, classes: Sequence[str]
) -> Mapping[tuple[int, ...], list[str]]:
    """Decisions of a probe on every utterance, for each tuple of removed layers.

    The front end runs once for all of them.
    """
    encoder: Any = model.encoder
    stacks = {
        removed: encoder.stack.remove(removed) if removed else encoder.stack for removed in removals
    }
    found: dict[tuple[int, ...], dict[str, str]] = {removed: {} for removed in removals}
    device = next(model.parameters()).device
    for batch in tqdm(list(_of_like_length(rows)), desc="pruning"):
        x, lengths = _front(encoder.stack, [wave for _, wave in batch], device)
        for removed, stack in stacks.items():
            head: Any = model.decoder
            logits = head(stack.hidden(x, lengths)[-1], lengths)
            for (name, _), best in zip(batch, logits.argmax(1).tolist(), strict=True):
                found[removed][name] = classes[best] if best < len(classes) else "<unk>"
    return {removed: [named[name] for name, _ in rows] for removed, named in found.items()}


def _of_like_length(rows: Rows) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of (utterance, samples) sorted by length within some hundreds."""
    for start in range(0, len(rows), 32 * _FORWARD):
        part = rows[start : start + 32 * _FORWARD]
        waves = zip([name for name, _ in part], read_waves(part), strict=True)
        ordered = sorted(waves, key=lambda item: len(item[1]))
        for first in range(0, len(ordered), _FORWARD):
            yield ordered[first : first + _FORWARD]
