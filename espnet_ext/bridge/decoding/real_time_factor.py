"""The real-time factor of a model on this machine, measured once and remembered."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.config.decoding import ATTENTION_BEAM
from espnet_ext.files import read_json, sha256_file, write_json
from espnet_ext.models.whisper_decoder import WhisperDecoder
from espnet_ext.results.environment import environment

_SECONDS = 10  # of the sound that is decoded
_ROUNDS = 3
_TOKENS = 40  # that an attention decoder computes for it: four in a second, as in speech


def real_time_factor(bundle: Bundle, decoder: Decoder) -> float:
    """Seconds of processing for a second of audio, with torch's present number of threads.

    It is the least of three rounds: of processor time on one thread, which other work on the
    machine disturbs least, else of time on the clock. A model is measured once on a machine: the
    figure is kept in ``~/.cache/espnet-ext/rtf.json``.
    """
    machine = environment()["machine"]
    parts = [sha256_file(bundle.path), bundle.member, decoder.method, decoder.beam_size]
    key = json.dumps([*parts, decoder.device, torch.get_num_threads(), machine])
    path = cache_file()
    known = _known(path)
    if key not in known:
        known = {**_known(path), key: min(measure(decoder) for _ in range(_ROUNDS))}
        write_json(path, known)
    return float(known[key])


def cache_file() -> Path:
    """Where figures are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "espnet-ext" / "rtf.json"


def _known(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@torch.no_grad()
def measure(decoder: Decoder) -> float:
    noise = np.random.default_rng(0).standard_normal(_SECONDS * decoder.rate)
    wave = (0.1 * noise / np.abs(noise).max()).astype(np.float32)
    alone = decoder.device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    if isinstance(decoder.model.decoder, WhisperDecoder):
        _attend(decoder, wave)  # a search would end early: there are no words in noise
    else:
        decoder.decode_waves([wave])
    return (clock() - start) / _SECONDS


def _attend(decoder: Decoder, wave: np.ndarray) -> None:
    """Encode, and run the decoder for as many tokens as speech has, for each text of a beam."""
    speech = torch.from_numpy(wave)[None].to(decoder.device)
    encoded, _ = decoder.model.encode(speech, torch.tensor([len(wave)], device=decoder.device))
    if decoder.method == ATTENTION_BEAM:
        encoded = encoded.expand(decoder.beam_size, -1, -1)
    tokens, past = decoder.model.decoder.prompts(encoded, None), None
    for _ in range(_TOKENS):
        scores, past = decoder.model.decoder.step(tokens, encoded, None, past)
        tokens = scores.argmax(-1, keepdim=True)
