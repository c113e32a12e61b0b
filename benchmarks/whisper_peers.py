"""An English Whisper as published, converted for the runtimes that people use, for ``device.py``.

Converters take a folder in transformers' format. Layouts are those of whisper.cpp's
``models/convert-h5-to-ggml.py`` and of sherpa-onnx's ``scripts/whisper/export-onnx.py``, which no
package has.
"""

import base64
import json
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_systems import CROSS, GRAPHS, GREEDY, SELF
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.errors import UserError
from espnet_ext.export.whisper.source import token_bytes

_GGML = 0x67676D6C
_Q8_0 = 8  # ggml's number of blocks of 32 numbers in 8 bits with a scale in float16
_MOSTLY_Q8_0 = 2007  # of a file: version 2 of that
_OPENAI = (  # names of transformers, and of Whisper's authors
    ("layers.", "blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("self_attn.", "attn."),
    ("encoder_attn.", "cross_attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
)


class Published:
    """The model of a folder, its features and tokens.

    Raises:
        UserError: a model of several languages, which would need a language.
    """

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.features = WhisperFeatureExtractor.from_pretrained(folder)
        tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        if getattr(self.model.generation_config, "is_multilingual", False):
            raise UserError(f"{folder}: knows several languages: compare an English Whisper")
        self.end = tokenizer.token_to_id("<|endoftext|>")
        self.start = tokenizer.token_to_id("<|startoftranscript|>")
        self.no_times = tokenizer.token_to_id("<|notimestamps|>")
        self.texts = [token_bytes(tokenizer.id_to_token(n)) for n in range(self.end)]


def write_graphs(folder: str | Path, out: Path, int8: bool) -> None:
    """Write encoder.onnx, decoder.onnx and tokens.txt as sherpa-onnx's ``from_whisper`` reads them.

    Args:
        folder: of the model.
        out: to write to.
        int8: round the weights of products, as that script does next to the float graphs.
    """
    found = Published(folder)
    out.mkdir(parents=True, exist_ok=True)
    mel = torch.zeros(1, found.model.config.num_mel_bins, 3000)
    encoder, decoder = Encoder(found.model), Decoder(found.model)
    with torch.no_grad():
        keys, values = encoder(mel)
    config = found.model.config
    empty = torch.zeros(config.decoder_layers, 1, config.max_target_positions, config.d_model)
    prompt = [found.start, found.no_times]
    _export(encoder, (mel,), out / "encoder.onnx", ["mel"], CROSS, {"mel": {2: "time"}})
    moving = {"tokens": {1: "n"}} | {name: {2: "time"} for name in CROSS}
    given = (torch.tensor([prompt]), empty, empty, keys, values, torch.tensor([3]))
    inputs = ["tokens", *SELF, *CROSS, "offset"]
    outputs = ["logits", *(name.replace("in_", "out_") for name in SELF)]
    _export(decoder, given, out / "decoder.onnx", inputs, outputs, moving)
    _describe(found, out / "encoder.onnx")
    if int8:
        _round(out)
    lines = (f"{base64.b64encode(text).decode()} {n}\n" for n, text in enumerate(found.texts))
    (out / "tokens.txt").write_text("".join(lines))
    (out / GREEDY).write_text(json.dumps({"prompt": prompt, "cache": list(empty.shape)}))
    shutil.copy(Path(folder, "preprocessor_config.json"), out)


def _export(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    moving: dict[str, dict[int, str]],
) -> None:
    torch.onnx.export(
        module,
        given,
        str(path),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=moving,
        opset_version=17,
        dynamo=False,
    )


def _describe(found: Published, path: Path) -> None:
    """Store what sherpa-onnx asks of the encoder's graph."""
    import onnx

    config = found.model.config
    described = {
        "model_type": "whisper",
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_text_layer": config.decoder_layers,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_vocab": config.vocab_size,
        "sot": found.start,
        "sot_index": 0,
        "eot": found.end,
        "blank_id": 220,
        "is_multilingual": 0,
        "no_timestamps": found.no_times,
        "no_speech": found.no_times - 1,
        "translate": found.no_times - 5,
        "transcribe": found.no_times - 4,
        "sot_prev": found.no_times - 2,
        "sot_lm": found.no_times - 3,
        "sot_sequence": found.start,
        "non_speech_tokens": "",
    }
    model = onnx.load(path)
    for key, value in described.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, path)


def _round(out: Path) -> None:
    """Round the weights of products to 8 bits, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in GRAPHS:
        path, new = out / f"{name}.onnx", out / f"{name}.int8.onnx"
        quantize_dynamic(path, new, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
        new.replace(path)


class Encoder(nn.Module):
    """Log-mel (1, bins, T) to keys and values of all cross-attentions (L, 1, T / 2, D)."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder = model.model.encoder, model.model.decoder

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """See above."""
        x = F.gelu(self.encoder.conv2(F.gelu(self.encoder.conv1(mel)))).transpose(1, 2)
        x = x + self.encoder.embed_positions.weight[: x.shape[1]]
        for layer in self.encoder.layers:
            y, at = layer.self_attn_layer_norm(x), layer.self_attn
            x = x + _attended(at, y, at.k_proj(y), at.v_proj(y))
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        x = self.encoder.layer_norm(x)
        crossed = [layer.encoder_attn for layer in self.decoder.layers]
        keys = torch.stack([at.k_proj(x) for at in crossed])
        return keys, torch.stack([at.v_proj(x) for at in crossed])


class Decoder(nn.Module):
    """Tokens (1, n) after ``offset`` others to scores (1, n, V); caches (L, 1, most tokens, D)."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder = model.model.decoder

    def forward(
        self, tokens: Tensor, keys: Tensor, values: Tensor, *crossed_and_offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See above."""
        cross_keys, cross_values, offset = crossed_and_offset
        first, end = offset[0], offset[0] + tokens.shape[1]
        table = self.decoder.embed_tokens.weight
        x = F.embedding(tokens, table) + self.decoder.embed_positions.weight[first:end]
        places = torch.arange(keys.shape[2])[:end]
        seen = places[None] <= places[first:end, None]
        new: tuple[list[Tensor], list[Tensor]] = [], []
        for n, layer in enumerate(self.decoder.layers):
            y, at = layer.self_attn_layer_norm(x), layer.self_attn
            both = [
                torch.cat([old[n, :, :first], project(y)], 1)
                for old, project in ((keys, at.k_proj), (values, at.v_proj))
            ]
            x = x + _attended(at, y, *both, seen)
            for kept, grown, old in zip(new, both, (keys, values), strict=True):
                kept.append(torch.cat([grown, old[n, :, end:]], 1))
            y = layer.encoder_attn_layer_norm(x)
            x = x + _attended(layer.encoder_attn, y, cross_keys[n], cross_values[n])
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        x = self.decoder.layer_norm(x)
        scores = torch.matmul(table, x.transpose(1, 2)).transpose(1, 2)  # the table stays once
        return scores, torch.stack(new[0]), torch.stack(new[1])


def _attended(at: Any, x: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """The output of an attention for x (1, n, D), keys and values (1, m, D)."""
    size = at.embed_dim // at.num_heads
    query, key, value = (
        y.reshape(1, -1, at.num_heads, size).transpose(1, 2) for y in (at.q_proj(x), key, value)
    )
    found = F.scaled_dot_product_attention(query, key, value, seen)
    return at.out_proj(found.transpose(1, 2).reshape(1, -1, at.embed_dim))


def write_ggml(folder: str | Path, path: Path) -> None:
    """Write a model for whisper.cpp with matrices in 8 bits (q8_0)."""
    found = Published(folder)
    config = found.model.config
    sizes = [config.vocab_size, config.max_source_positions]
    sizes += [config.d_model, config.encoder_attention_heads, config.encoder_layers]
    sizes += [config.max_target_positions]
    sizes += [config.d_model, config.decoder_attention_heads, config.decoder_layers]
    mel = found.features.mel_filters.T.astype(np.float32)
    texts = [*found.texts, b"<|endoftext|>"]
    with path.open("wb") as file:
        file.write(struct.pack("12i", _GGML, *sizes, config.num_mel_bins, _MOSTLY_Q8_0))
        file.write(struct.pack("2i", *mel.shape) + mel.tobytes())
        file.write(struct.pack("i", len(texts)))
        for text in texts:
            file.write(struct.pack("i", len(text)) + text)
        for name, tensor in found.model.model.state_dict().items():
            file.write(_ggml_tensor(name, tensor.float().numpy()))


def _ggml_tensor(name: str, values: np.ndarray) -> bytes:
    """A tensor with its header."""
    for theirs, ours in _OPENAI:
        name = name.replace(theirs, ours)
    if re.fullmatch(r"encoder\.conv\d\.bias", name):
        values = values[:, None]
    kind, data = 0, values.astype(np.float32).tobytes()
    if values.ndim == 3:
        kind, data = 1, values.astype(np.float16).tobytes()
    elif name.endswith("weight") and values.ndim == 2:
        kind, data = _Q8_0, _q8_0(values)
    encoded = name.encode()
    header = struct.pack("3i", values.ndim, len(encoded), kind)
    return header + struct.pack(f"{values.ndim}i", *reversed(values.shape)) + encoded + data


def _q8_0(values: np.ndarray) -> bytes:
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    ints = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    packed = np.empty(len(blocks), np.dtype([("scale", "<f2"), ("ints", "i1", 32)]))
    packed["scale"], packed["ints"] = scale[:, 0], ints
    return packed.tobytes()
