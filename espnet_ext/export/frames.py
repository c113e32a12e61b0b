"""CTC recognisers and classifiers as graphs, traced by torch.

    preprocess   audio (1, n) -> x (1, frames, features)
    model        x (N, frames, features), x_lens (N,) -> log_probs, log_probs_len (N,)

``log_probs`` are (N, frames, V) of CTC, which is sherpa-onnx's contract ``from_zipformer_ctc``, and
(N, classes) of a classifier. Statistics of the normalisation are inside.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from espnet2.legacy.nets.pytorch_backend import nets_utils
from onnx import helper
from torch import Tensor, nn

from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.footprint import is_classifier
from espnet_ext.errors import UserError, one_line
from espnet_ext.export.fbank import Fbank
from espnet_ext.export.graph import OPSET, Products
from espnet_ext.export.rounded import use_integers
from espnet_ext.methods.tensors import frame_mask

PREPROCESS, MODEL = "preprocess.onnx", "model.onnx"
_FRAMES = 150  # of the input that is traced


class Frames(nn.Module):
    """Normalisation, encoder and output of a model on features."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr, self.classifies = asr, is_classifier(asr)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities, and their number of frames."""
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), x_lens)
        encoded, lengths, _ = self.asr.encoder(x, x_lens)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        if self.classifies:
            return self.asr.decoder(encoded, lengths).log_softmax(-1), lengths
        return self.asr.ctc.log_softmax(encoded), lengths


def write(
    decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
) -> dict[int, int]:
    """Write the two graphs; return how many weights are stored in how many bits.

    Args:
        decoder: the model; its layers are replaced by rounded ones.
        state: of its packed file; empty for a model at 32 bits.
        folder: that exists.
        products: see ``graph.Graph``.

    Raises:
        UserError: no CTC and no classes, features that the graph cannot compute, or an encoder
            that cannot be traced.
    """
    asr = decoder.model
    if asr.frontend is not None or decoder.width is None:
        raise UserError("only models of Kaldi-definition log-mel can be exported")
    counted = use_integers(asr, state, products)
    source = decoder.source
    features = Fbank(source.rate, decoder.width // (1 + source.deltas), source.deltas)
    audio = torch.zeros(1, 2 * source.rate)
    _trace(features, (audio,), folder / PREPROCESS, {"audio": {1: "n"}}, {"x": {1: "frames"}})
    x, lengths = torch.zeros(2, _FRAMES, decoder.width), torch.tensor([_FRAMES, _FRAMES - 9])
    inputs = {"x": {0: "N", 1: "frames"}, "x_lens": {0: "N"}}
    outputs = {"log_probs": {0: "N"}, "log_probs_len": {0: "N"}}
    if not is_classifier(asr):
        outputs["log_probs"][1] = "out_frames"
    with _traceable_masks():
        _trace(Frames(asr).eval(), (x, lengths), folder / MODEL, inputs, outputs)
    return dict(counted)


def _trace(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: dict[str, dict[int, str]],
    outputs: dict[str, dict[int, str]],
) -> None:
    """Write the graph of a module; tensors have the names and free dimensions that are given."""
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
        raise UserError(f"this encoder cannot be traced: {one_line(error)}") from None
    model = onnx.load(path)
    del model.opset_import[:]
    for domain, version in (("", OPSET), ("com.microsoft", 1)):
        model.opset_import.append(helper.make_opsetid(domain, version))
    onnx.save(model, path)


@contextlib.contextmanager
def _traceable_masks() -> Iterator[None]:
    """Inside the block ESPnet's masks of padding are computed from tensors.

    Its own function makes lists of numbers, which tracing writes as constants.
    """
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
