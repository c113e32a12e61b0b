"""Streaming transducers as graphs, traced by torch: sherpa-onnx's online contract of NeMo.

    preprocess   audio (1, n) -> x (1, frames, bins); whole windows (not of the contract)
    encoder      audio_signal (1, bins, window), length, three caches
                 -> outputs (1, J, chunk), encoded_lengths, the caches
    decoder      targets (1, 1), target_length, states0, states1
                 -> outputs (1, J, 1), prednet_lengths, the states
    joiner       encoder_outputs (1, J, 1), decoder_outputs (1, J, 1) -> logits (1, 1, 1, V)

A window is a chunk and its look-ahead. The caches are keys and values (1, 2 layers, history, d),
the last frames of all convolutions in one row, and how many frames of the history are valid. The
blank is the last token: ids are those of the model less one.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor, nn

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.data.features import FRAMES_PER_SECOND, SUBSAMPLING
from espnet_ext.encoders.chunks import ConvContext, Geometry, subsampled
from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder, StreamState
from espnet_ext.errors import UserError
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.traced.rounded import use_integers
from espnet_ext.export.traced.tracing import trace, trace_features, traceable
from espnet_ext.methods.tensors import frame_mask

ENCODER, DECODER, JOINER = "encoder.onnx", "decoder.onnx", "joiner.onnx"
_CACHES = ("cache_last_channel", "cache_last_time", "cache_last_channel_len")


class EncoderStep(nn.Module):
    """Normalisation, encoder and the joiner's projection of one chunk."""

    def __init__(self, asr: Any):
        super().__init__()
        self.asr, self.encoder = asr, asr.encoder
        self.geometry: Geometry = asr.encoder.geometry
        first = asr.encoder.init_state(1)
        parts = [*first.context, *(one for layer in first.history for one in layer[2:])]
        self.convolutions = [len(layer) - 2 for layer in first.history]
        self.sizes = [part.numel() for part in parts]
        self.shapes = [part.shape for part in parts]

    def caches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those before the first chunk."""
        layers, width = len(self.encoder.encoders), self.encoder.output_size()
        return (
            torch.zeros(1, 2 * layers, self.geometry.history, width),
            torch.zeros(1, 1, 1, sum(self.sizes)),
            torch.zeros(1, dtype=torch.int64),
        )

    def forward(
        self, audio_signal: Tensor, length: Tensor, channel: Tensor, time: Tensor, count: Tensor
    ) -> tuple[Tensor, ...]:
        """Encode a window of which ``length`` (1,) frames are speech."""
        x = audio_signal.transpose(1, 2)
        if self.asr.normalize is not None:
            x, _ = self.asr.normalize(x.clone(), length)
        chunk = self.geometry.chunk * SUBSAMPLING
        rows = zip(time.split(self.sizes, 3), self.shapes, strict=True)
        parts = [row.reshape(shape) for row, shape in rows]
        count_front = len(ConvContext._fields)
        context, rest = ConvContext(*parts[:count_front]), iter(parts[count_front:])
        embedded, context = self.encoder.embed(x, length, context, chunk)
        pairs = iter(channel.squeeze(0).split(1))
        places = torch.arange(self.geometry.history)
        state = StreamState(
            context=context,
            pending=x[:, :0],
            pending_valid=x[:, :0, 0],
            history=tuple(
                (next(pairs), next(pairs), *itertools.islice(rest, more))
                for more in self.convolutions
            ),
            history_valid=(places >= self.geometry.history - count).unsqueeze(0),
        )
        valid = frame_mask(subsampled(length), self.geometry.block)
        y, state = self.encoder.encode_ready(embedded, valid, state, final=False)
        y = self.asr.joint_network.lin_enc(self.encoder.after_norm(y))
        kept = torch.cat([part for layer in state.history for part in layer[:2]]).unsqueeze(0)
        parts = [*context, *(part for layer in state.history for part in layer[2:])]
        kept_time = torch.cat([part.reshape(1, 1, 1, -1) for part in parts], dim=3)
        encoded = subsampled(length.clamp(max=chunk))
        filled = (count + encoded).clamp(max=self.geometry.history)
        return y.transpose(1, 2), encoded, kept, kept_time, filled


class PredictorStep(nn.Module):
    """The predictor and the joiner's projection, for one token."""

    def __init__(self, asr: Any):
        super().__init__()
        self.predictor, self.joiner = asr.decoder, asr.joint_network
        self.tokens = len(asr.token_list)

    def states(self) -> tuple[Tensor, Tensor]:
        """Those before the first token."""
        shape = self.predictor.dlayers, 1, self.predictor.dunits
        return torch.zeros(shape), torch.zeros(shape)

    def forward(
        self, targets: Tensor, target_length: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, ...]:
        """Read one token (1, 1)."""
        y = self.predictor.embed((targets.long() + 1) % self.tokens)
        kept = []
        for number, layer in enumerate(self.predictor.decoder):
            one = slice(number, number + 1)
            y, states = layer(y, (hidden[one], cell[one]))
            kept.append(states)
        hidden, cell = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return self.joiner.lin_dec(y).transpose(1, 2), target_length + 0, hidden, cell


class JoinerStep(nn.Module):
    """The joiner's scores of one frame and one token."""

    def __init__(self, asr: Any):
        super().__init__()
        self.joiner = asr.joint_network
        self.order = [*range(1, len(asr.token_list)), 0]

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Scores (1, 1, 1, V), the blank last."""
        frames, tokens = encoded.transpose(1, 2).unsqueeze(2), predicted.transpose(1, 2)
        logits = self.joiner(frames, tokens.unsqueeze(1), no_projection=True)
        return logits[..., self.order]


def write(
    decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
) -> dict[int, int]:
    """Write the four graphs; return how many weights are stored in how many bits.

    Args:
        decoder: the model; its layers are replaced by rounded ones.
        state: of its packed file; empty for a model at 32 bits.
        folder: that exists.
        products: see ``graphs.graph.Graph``.

    Raises:
        UserError: an encoder that does not stream, or features or a predictor that the contract
            does not hold.
    """
    asr = decoder.model
    refuse(decoder)
    step, predictor, joiner = EncoderStep(asr).eval(), PredictorStep(asr).eval(), JoinerStep(asr)
    counted = use_integers(asr, state, products)
    bins = trace_features(decoder, folder, pieces=True)
    caches, states = step.caches(), predictor.states()
    window = step.geometry.block * SUBSAMPLING
    given = torch.zeros(1, bins, window), torch.tensor([window]), *caches
    outputs = ["outputs", "encoded_lengths", *(f"{name}_next" for name in _CACHES)]
    data = _metadata(decoder, step, predictor)
    with traceable(asr):
        names = ["audio_signal", "length", *_CACHES]
        trace(step, given, folder / ENCODER, _fixed(names), _fixed(outputs), data)
    target = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    names = ["targets", "target_length", "states0", "states1"]
    outputs = ["outputs", "prednet_lengths", "states0_next", "states1_next"]
    trace(predictor, (*target, *states), folder / DECODER, _fixed(names), _fixed(outputs))
    width = asr.joint_network.lin_enc.bias.numel()
    pair = torch.zeros(1, width, 1), torch.zeros(1, width, 1)
    names = ["encoder_outputs", "decoder_outputs"]
    trace(joiner.eval(), pair, folder / JOINER, _fixed(names), _fixed(["logits"]))
    return dict(counted)


def refuse(decoder: Decoder) -> None:
    """Raise UserError for a transducer that the contract does not hold."""
    asr = decoder.model
    if not isinstance(asr.encoder, StreamingTransformerEncoder):
        name = decoder.inference.asr_train_args.encoder
        raise UserError(f"encoder {name}: of transducers only streaming ones are exported")
    if not asr.encoder.geometry.history:
        raise UserError("encoder_conf: history_ms 0: the contract needs a history")
    if asr.frontend is not None or decoder.width is None or decoder.source.deltas:
        raise UserError("only transducers of log-mel without deltas can be exported")
    if not isinstance(asr.normalize, GlobalMVN | None):
        raise UserError("a stream needs normalize: global_mvn, which needs no whole utterance")
    if asr.decoder.dtype != "lstm":
        raise UserError(f"decoder_conf: rnn_type {asr.decoder.dtype}: the contract needs lstm")


def _fixed(names: list[str]) -> dict[str, dict[int, str]]:
    """Tensors without free dimensions."""
    return {name: {} for name in names}


def _metadata(decoder: Decoder, step: EncoderStep, predictor: PredictorStep) -> dict[str, Any]:
    """What sherpa-onnx reads from the encoder."""
    channel, time, _ = step.caches()
    sizes = {
        f"{name}_dim{place}": cache.shape[place]
        for name, cache in zip(_CACHES, (channel, time), strict=False)
        for place in (1, 2, 3)
    }
    return {
        "model_type": "EncDecRNNTBPEModel",
        "version": 1,
        "vocab_size": predictor.tokens - 1,
        "window_size": step.geometry.block * SUBSAMPLING,
        "chunk_shift": step.geometry.chunk * SUBSAMPLING,
        "subsampling_factor": SUBSAMPLING,
        "normalize_type": "NA",
        "pred_rnn_layers": predictor.predictor.dlayers,
        "pred_hidden": predictor.predictor.dunits,
        "features": decoder.source.definition,
        "frames_per_second": FRAMES_PER_SECOND,
        **sizes,
    }
