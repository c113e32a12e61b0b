"""Graphs that torch traces."""

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.legacy.nets.pytorch_backend import nets_utils
from espnet2.legacy.nets.pytorch_backend.rnn import encoders
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    PositionalEncoding,
    RelPositionalEncoding,
)
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.encoders.pretrained.features import LayerFeatures
from espnet_ext.errors import UserError, one_line
from espnet_ext.export.graphs.folding import fold_shapes
from espnet_ext.export.graphs.graph import OPSET, graphs_in, nodes_in
from espnet_ext.export.graphs.products import in_pairs
from espnet_ext.export.traced.fbank import EspnetLogMel, Fbank
from espnet_ext.methods.tensors import frame_mask

PREPROCESS = "preprocess.onnx"
_LEAST_HALVED = 64  # numbers: fewer save less than the node that reads them adds


def trace(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: dict[str, dict[int, str]],
    outputs: dict[str, dict[int, str]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the graph of a module.

    Args:
        module: traced.
        given: its arguments.
        path: of the file.
        inputs: names of the arguments, with their free dimensions.
        outputs: the same of what it returns.
        metadata: entries that a runtime reads.

    Raises:
        UserError: torch cannot trace it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: outputs are compared afterwards
            torch.onnx.export(
                module,
                given,
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={**inputs, **outputs},
                opset_version=20,
                dynamo=False,
                do_constant_folding=False,
            )
    except Exception as error:  # of many types
        raise UserError(f"{path.stem}: this model cannot be traced: {one_line(error)}") from None
    model = onnx.load(path)
    del model.opset_import[:]
    for domain, version in (("", OPSET), ("com.microsoft", 1)):
        model.opset_import.append(helper.make_opsetid(domain, version))
    if not any(inputs.values()):
        fold_shapes(model)
    _pack_pairs(model.graph)
    _halve(model.graph)
    _shorten_names(model.graph)
    helper.set_model_props(model, {key: str(value) for key, value in (metadata or {}).items()})
    onnx.save(model, path)


def trace_features(decoder: Decoder, folder: Path, pieces: bool = False) -> int:
    """Write the graph of a model's log-mel; return its width.

    ``pieces``: see ``Fbank``.

    Raises:
        UserError: the model reads no log-mel, or that of another frontend than ESPnet's default.
    """
    source, frontend, width = decoder.source, decoder.model.frontend, decoder.width
    if isinstance(frontend, DefaultFrontend) and not pieces:
        width = frontend.output_size()
        features: nn.Module = EspnetLogMel(frontend)
    elif frontend is None and width is not None:
        bins = width // (1 + source.deltas)
        features = Fbank(source.rate, bins, source.deltas, source.definition, pieces)
    else:
        if isinstance(frontend, LayerFeatures):
            raise UserError("frontend: ssl: only models with CTC or classes are exported")
        name = decoder.inference.asr_train_args.frontend
        raise UserError(f"frontend: {name}: the features of this model are not exported")
    audio = torch.zeros(1, 2 * source.rate)
    trace(features, (audio,), folder / PREPROCESS, {"audio": {1: "n"}}, {"x": {1: "frames"}})
    return width


def _shorten_names(graph: onnx.GraphProto) -> None:
    """Number nodes and tensors: names by place in the model are half of a small graph."""
    kept = {one.name for one in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}

    def name(long: str) -> str:
        return long if long in kept else short.setdefault(long, str(len(short)))

    for inner in graphs_in(graph):
        for stored in (*inner.initializer, *inner.input, *inner.output):
            stored.name = name(stored.name)
        for node in inner.node:
            node.name = node.doc_string = ""
            node.input[:] = [name(one) for one in node.input]
            node.output[:] = [name(one) for one in node.output]
        del inner.value_info[:]


def _halve(graph: onnx.GraphProto) -> None:
    """Store numbers that float16 holds in it, such as the scales of groups."""
    casts = []
    for stored in graph.initializer:
        if stored.data_type != TensorProto.FLOAT or np.prod(stored.dims) < _LEAST_HALVED:
            continue
        values = numpy_helper.to_array(stored)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            name = stored.name
            stored.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _pack_pairs(graph: onnx.GraphProto) -> None:
    """Store integers of at most 4 bits two to a byte, where they are only cast: torch has bytes."""
    users: dict[str, list[str]] = {}
    for node in nodes_in(graph):
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    for stored in graph.initializer:
        if stored.data_type != TensorProto.INT8 or set(users.get(stored.name, ())) != {"Cast"}:
            continue
        values = numpy_helper.to_array(stored)
        if values.size and values.min() >= -8 and values.max() <= 7:
            stored.CopyFrom(in_pairs(stored.name, values))


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside the block ESPnet's masks of padding and its positions are computed in a graph.

    Tracing would write the numbers of a mask, and a table of 5,000 positions, as constants.
    Recurrent layers read one whole utterance, since packed ones have lengths that are constants.
    """
    known = {PositionalEncoding: _positions, RelPositionalEncoding: _relative_positions}
    places = [module for module in model.modules() if type(module) in known]
    for module in places:
        module.forward = functools.partial(known[type(module)], module)
    try:
        with _traceable_masks(), _unpacked():
            yield
    finally:
        for module in places:
            del module.forward


def _positions(module: Any, x: Tensor) -> Tensor:
    """ESPnet's ``PositionalEncoding``."""
    return x * module.xscale + sinusoids(torch.arange(x.shape[1]), module.d_model)


def _relative_positions(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """ESPnet's ``RelPositionalEncoding``: of distances from T - 1 down to 1 - T."""
    distances = torch.arange(2 * x.shape[1] - 1) - x.shape[1] + 1
    return x * module.xscale, sinusoids(-distances, module.d_model).unsqueeze(0)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Sine and cosine in turns (n, width), as ESPnet encodes places (n,)."""
    rates = (torch.arange(0, width, 2) * (-math.log(10_000.0) / width)).exp()
    angles = places.unsqueeze(-1).float() * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def frame_count(x: Tensor) -> Tensor:
    """Frames (batch,) of whole utterances (batch, T, d), as a graph counts them."""
    return (x[:, :, 0] * 0 + 1).sum(1).long()


@contextlib.contextmanager
def _unpacked() -> Iterator[None]:
    """Recurrent layers of ESPnet on utterances (1, T, d) as they are."""
    names = "pack_padded_sequence", "pad_packed_sequence"
    kept = [getattr(encoders, name) for name in names]
    encoders.pack_padded_sequence = lambda x, lengths, **_: x
    encoders.pad_packed_sequence = lambda y, **_: (y, frame_count(y))
    try:
        yield
    finally:
        for name, function in zip(names, kept, strict=True):
            setattr(encoders, name, function)


@contextlib.contextmanager
def _traceable_masks() -> Iterator[None]:
    original = nets_utils.make_pad_mask
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(("espnet", "espnet2", "espnet_ext"))
        and getattr(module, "make_pad_mask", None) is original
    ]
    for module in users:
        module.make_pad_mask = _pad_mask  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.make_pad_mask = original  # type: ignore[attr-defined]


def _pad_mask(
    lengths: Tensor, xs: Tensor | None = None, length_dim: int = -1, maxlen: int | None = None
) -> Tensor:
    """True outside of the lengths; arguments are those of ESPnet's ``make_pad_mask``."""
    if xs is None:
        frames: Any = lengths.max() if maxlen is None else maxlen
        return ~frame_mask(lengths, frames)
    mask = ~frame_mask(lengths, xs.shape[length_dim])
    shape = [1] * xs.dim()
    shape[0], shape[length_dim] = -1, mask.shape[1]
    return mask.reshape(shape).expand_as(xs)
