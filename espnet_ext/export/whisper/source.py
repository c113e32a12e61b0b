"""Reads a deployed Whisper for its graphs, and the texts of its tokens."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.variants import matrices
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.errors import UserError
from espnet_ext.export.graphs.products import Weight
from espnet_ext.export.traced.rounded import round_weight
from espnet_ext.export.whisper.model import Mimics, Whisper
from espnet_ext.formats.packed import State
from espnet_ext.methods.codes import Coded
from espnet_ext.models.whisper_decoder import DETECT, WhisperDecoder

_ENCODER, _DECODER = "encoder.stack.", "decoder.decoder."
_SPECIAL = re.compile(r"<\|.*\|>")
LEAST = 1600  # samples of the shortest speech that is encoded


def read_whisper(path: Path, decoder: Decoder, stored: State, bits: int | None) -> Whisper:
    """Read all that the graphs of a deployed Whisper need; for the arguments see ``contract_of``.

    Raises:
        UserError: weights that the graphs have no place for.
    """
    asr: Any = decoder.model
    stack = getattr(asr.encoder, "base", None)
    if not isinstance(asr.decoder, WhisperDecoder) or not isinstance(stack, WhisperStack):
        raise UserError(f"{path}: so far only a whole Whisper can be exported")
    mimics, encoder = None, f"{_ENCODER}model."
    if (mimic := asr.encoder.mimic) is not None:
        heads = mimic.options.heads if mimic.options.kind == "transformer" else None
        mimics = Mimics(f"{_ENCODER}mimic.parts.", len(mimic.targets), heads)
        encoder = f"{_ENCODER}stack.model."
    chunks = stack.chunks
    rounded: dict[str, Weight] = dict(stored)
    for name, weight in matrices(asr).items() if bits else ():
        # Rows of the table are chosen one by one: its scales are those of rows.
        rounded[name] = round_weight(weight, 8 if "embed_tokens" in name else int(bits or 0))
    state = _with_shared(asr, rounded)
    config = stack.model.config
    layers = len(stack.model.layers), len(asr.decoder.decoder.layers)
    found = Whisper(
        state=state,
        encoder=encoder,
        decoder=_DECODER,
        heads=config.encoder_attention_heads,
        layers=layers,
        mel=np.asarray(stack.extractor.mel_filters, np.float32),
        prompt=tuple(asr.decoder.prompt),
        languages=tuple(asr.decoder.languages) if asr.decoder.language == DETECT else (),
        end=int(asr.decoder.end),
        least=max(LEAST, asr.encoder.pad_to),
        rows=_text_rows(asr.token_list, state[f"{_DECODER}embed_tokens.weight"]),
        mimics=mimics,
        chunks=chunks.geometry if chunks is not None and chunks.active(False) else None,
    )
    refuse_others(found, path)
    return found


def _with_shared(asr: Any, rounded: Mapping[str, Weight]) -> dict[str, Weight]:
    """All weights of a model by name; names of one parameter have one object."""
    state: dict[str, Weight] = {**asr.state_dict(), **rounded}
    places = dict(asr.named_parameters(remove_duplicate=False))
    kept = {id(place): state[name] for name, place in places.items()}
    kept |= {id(places[name]): one for name, one in rounded.items() if name in places}
    return state | {name: kept[id(place)] for name, place in places.items()}


def choose_language(path: Path, decoder: Decoder, language: str) -> None:
    """Let a model that detects languages transcribe one.

    Raises:
        UserError: it detects none, or does not know that one.
    """
    whisper = decoder.model.decoder
    if not isinstance(whisper, WhisperDecoder) or whisper.language != DETECT:
        raise UserError(f"{path}: this model detects no language: leave out --language")
    whisper.language = language
    whisper.use_tokens(decoder.model.token_list)


def _text_rows(tokens: Sequence[str], table: Weight) -> tuple[int, ...]:
    """Ids of the tokens of texts; of a table with shared rows, those with separate rows.

    Of a table in two parts those of the second, of rare tokens, come first.
    """
    ids = torch.arange(len(tokens))
    found = [ids]
    if isinstance(table, Coded) and table.kept is not None:
        found = [ids[table.kept]]
        if isinstance(table.rest, Coded):
            others, rare = ids[~table.kept], table.rest.kept
            found.insert(0, others if rare is None else others[rare])
    return tuple(n for n in torch.cat(found).tolist() if not _SPECIAL.fullmatch(tokens[n]))


def refuse_others(model: Whisper, path: Path) -> None:
    """Refuse a model with weights that Whisper's graphs have no place for."""
    layer = r"layers\.\d+\.((self_attn|encoder_attn)\.([qkv]|out)_proj|fc[12]|\w*layer_norm)"
    other = r"conv[12]|embed_positions|embed_tokens|layer_norm"
    known = re.compile(
        rf"({re.escape(model.encoder)}|{re.escape(model.decoder)})({layer}|{other})"
        r"\.(weight|bias|down|up|diagonal)"
        rf"|{re.escape(_ENCODER)}mimic\.parts\.\d\.(linear|norm)\w*\.(weight|bias)"
    )
    left = sorted(name for name in model.state if not known.fullmatch(name))
    if left:
        raise UserError(
            f"{path}: {left[0]} and {len(left) - 1} more have no place in Whisper's graphs: "
            "export the variant merged"
        )


def symbols(tokens: Mapping[int, str] | Sequence[str], rows: Sequence[int]) -> list[str]:
    """The line of each token in tokens.txt: its text with a mark for a blank, or its bytes."""
    found = []
    for row in rows:
        data = token_bytes(tokens[row])
        try:
            text = data.decode("utf-8").replace(" ", "\u2581")
        except UnicodeDecodeError:
            text = ""
        if not text or any(c.isspace() for c in text):
            text = "".join(f"<0x{byte:02X}>" for byte in data)
        found.append(text)
    return found


def token_bytes(token: str) -> bytes:
    """The bytes of a byte-level token (GPT-2)."""
    return bytes(_BYTES[c] for c in token)


def _byte_names() -> dict[str, int]:
    """The byte that each character of a byte-level token represents (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    named = {chr(byte): byte for byte in shown}
    return named | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _byte_names()
