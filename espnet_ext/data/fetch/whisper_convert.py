"""A Whisper of CTranslate2 as the folder that transformers loads: encoder, decoder, tokenizer."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.data.fetch.ctranslate2 import Weights
from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path, write_json

_HEAD = 64  # features of an attention head in every Whisper
_TIMESTAMPS = 1501  # tokens of 0 to 30 s, which tokenizer.json leaves out
_ENGLISH_ONLY = 51864  # tokens at most of a model that knows English alone
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_KINDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
# Layers of a block by CTranslate2's names. Projections of one input lie one under another.
_PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.qkv_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.kv_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_PROJECTION = "decoder/projection/weight"  # the embedding under another name
# Parts outside of the blocks.
_OTHERS = {
    "encoder": {"position_encodings/encodings": "embed_positions.weight"},
    "decoder": {
        "position_encodings/encodings": "embed_positions.weight",
        "embeddings/weight": "embed_tokens.weight",
    },
}


def convert(weights: Weights, tokenizer: bytes, folder: str | Path, name: str) -> None:
    """Write a whole Whisper as transformers' WhisperForConditionalGeneration, in float32.

    Args:
        weights: contents of model.bin.
        tokenizer: contents of tokenizer.json.
        folder: where the model goes.
        name: of the source, for messages.

    Raises:
        UserError: not a Whisper model, quantised weights, a tokenizer of another model, or tensors
            that are not those of a Whisper of these sizes.
    """
    from safetensors.numpy import save_file
    from transformers import WhisperFeatureExtractor

    if weights.specification != "WhisperSpec":
        raise UserError(f"{name}: a {weights.specification}, not a Whisper model")
    tensors = _tensors(weights.variables, name)
    config = _config(tensors, weights.variables, name)
    words = _with_timestamps(tokenizer, config["vocab_size"], name)
    ids = {token["content"]: token["id"] for token in words["added_tokens"]}
    config |= _special_ids(ids, name)
    _refuse_other_tensors(tensors, config, name)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        WhisperFeatureExtractor(feature_size=config["num_mel_bins"]).save_pretrained(temporary)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config)
        write_json(temporary / "generation_config.json", _generation(config, ids))
        write_json(temporary / "tokenizer.json", words)
        write_json(temporary / "tokenizer_config.json", _tokenizer_config())
        # safetensors makes a file that nobody else may read.
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")


def _tensors(variables: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the model's tensors by transformers' names."""
    found: dict[str, np.ndarray] = {}
    table, other = variables.get("decoder/embeddings/weight"), variables.get(_PROJECTION)
    if table is not None and other is not None and not np.array_equal(other, table):
        raise UserError(f"{name}: {_PROJECTION} is not the embedding: no Whisper model")
    for key, value in variables.items():
        half, _, rest = key.partition("/")
        if half not in _OTHERS or value.ndim == 0 or key == _PROJECTION:  # scalars are options
            continue
        if rest.startswith("alignment"):
            continue  # of word times
        if value.dtype.kind != "f":
            raise UserError(f"{name}: {key} is quantised; take a model in float16 or float32")
        ours = f"model.{half}.{_renamed(half, rest, name)}"
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{name}: {key} holds NaN or infinite values; get it again")
        joined = re.search(r"\.([qkv]{2,3})_proj\.", ours)
        if joined is None:
            found[ours] = value
            continue
        for part, cut in zip(joined[1], np.split(value, len(joined[1])), strict=True):
            one = ours.replace(f"{joined[1]}_proj", f"{part}_proj")
            found[one] = np.ascontiguousarray(cut)
    for key in [k for k in found if k.endswith("k_proj.bias")]:
        if found.pop(key).any():  # a bias of the keys changes nothing; Whisper has none
            raise UserError(f"{name}: {key} is not zero: no Whisper model")
    return found


def _renamed(half: str, key: str, name: str) -> str:
    """Return transformers' name of a variable of the encoder or the decoder."""
    layer = re.fullmatch(r"layer_(\d+)/(\w+/\w+)/(\w+)", key)
    if layer is not None and layer[2] in _PARTS and layer[3] in _KINDS:
        return f"layers.{layer[1]}.{_PARTS[layer[2]]}.{_KINDS[layer[3]]}"
    head, _, last = key.rpartition("/")
    if head in ("conv1", "conv2", "layer_norm") and last in _KINDS:
        return f"{head}.{_KINDS[last]}"
    if key in _OTHERS[half]:
        return _OTHERS[half][key]
    raise UserError(f"{name}: unknown variable {half}/{key}: no Whisper {half}")


def _config(
    tensors: Mapping[str, np.ndarray], variables: Mapping[str, np.ndarray], name: str
) -> dict[str, Any]:
    """Return transformers' config of a model with these tensors."""
    start = "model.{}.layers."
    for half in _OTHERS:
        if not any(key.startswith(start.format(half)) for key in tensors):
            raise UserError(f"{name}: holds no whole Whisper {half}")
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    try:
        config["d_model"], config["num_mel_bins"] = tensors["model.encoder.conv1.weight"].shape[:2]
        for half, side in (("encoder", "source"), ("decoder", "target")):
            layers = start.format(half)
            heads = variables.get(f"{half}/num_heads", config["d_model"] // _HEAD)
            config |= {
                f"{half}_layers": 1 + max(_layer(k) for k in tensors if k.startswith(layers)),
                f"{half}_attention_heads": int(heads),
                f"{half}_ffn_dim": len(tensors[f"{layers}0.fc1.weight"]),
                f"max_{side}_positions": len(tensors[f"model.{half}.embed_positions.weight"]),
            }
        config["vocab_size"] = len(tensors["model.decoder.embed_tokens.weight"])
    except KeyError as error:
        raise UserError(f"{name}: no whole Whisper: it lacks {error}") from None
    return config


def _layer(key: str) -> int:
    """The number of the layer that a tensor belongs to."""
    return int(key.split(".")[3])


def _with_timestamps(tokenizer: bytes, rows: int, name: str) -> dict[str, Any]:
    """Return the content of tokenizer.json with a token for each of the model's ``rows``."""
    try:
        content = json.loads(tokenizer)
        added, vocabulary = content["added_tokens"], content["model"]["vocab"]
        known = {token["id"] for token in added} | set(vocabulary.values())
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{name}: no tokenizer.json that can be read") from None
    count = len(known)
    if rows - count == _TIMESTAMPS:
        like = {key: value for key, value in added[-1].items() if key not in ("id", "content")}
        more = [
            {"id": count + k, "content": f"<|{k / 50:.2f}|>", **like} for k in range(_TIMESTAMPS)
        ]
        content["added_tokens"] = [*added, *more]
        known |= {token["id"] for token in more}
    if known != set(range(rows)):
        raise UserError(
            f"{name}: the tokenizer has {count} tokens, the model {rows}: it is another model's"
        )
    return content


def _special_ids(ids: Mapping[str, int], name: str) -> dict[str, int]:
    """Return the ids of tokens that transformers' config names."""
    for token in ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"):
        if token not in ids:
            raise UserError(f"{name}: the tokenizer has no {token}: it is not Whisper's")
    end = ids["<|endoftext|>"]
    keys = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    return {**keys, "decoder_start_token_id": ids["<|startoftranscript|>"]}


def _generation(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return generation_config.json: what transformers' generate reads."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    found = {key: config[key] for key in keys} | {
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "is_multilingual": config["vocab_size"] > _ENGLISH_ONLY,
        "return_timestamps": False,
    }
    if found["is_multilingual"]:
        found["lang_to_id"] = {t: i for t, i in ids.items() if _LANGUAGE.fullmatch(t)}
        found["task_to_id"] = {t: ids[f"<|{t}|>"] for t in ("transcribe", "translate")}
    return found


def _tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json, by which transformers' AutoTokenizer finds the class."""
    end = "<|endoftext|>"
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end)
    return {"tokenizer_class": "WhisperTokenizer", "add_prefix_space": False, **tokens}


def _refuse_other_tensors(
    tensors: Mapping[str, np.ndarray], config: dict[str, Any], name: str
) -> None:
    """Raise UserError if the tensors are not exactly those of transformers' model."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**config))
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    del wanted["proj_out.weight"]  # tied to the embedding
    found = {key: value.shape for key, value in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"{name}: no whole Whisper: {key} has the shape {found.get(key, 'of nothing')}, "
                f"transformers' model {wanted.get(key, 'has none')}"
            )
