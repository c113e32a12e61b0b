"""Decoding with ESPnet's ``Speech2Text``, over processes that share one loaded model."""

import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin.asr_inference import Speech2Text
from tqdm import tqdm

from espnet_ext.data.audio import read_wave
from espnet_ext.data.fbank import kaldi_fbank
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.parallel import map_processes
from espnet_ext.errors import UserError
from espnet_ext.tasks.checkpoint import load_model

_FRAMES_PER_SECOND = 100
# What the real-time factor is measured on: enough to hold every length, few enough to repeat.
TIMED_UTTERANCES = 50
TIMED_ROUNDS = 5
# What forked processes use: set before they start, so that the model is loaded once.
_shared: dict[str, Any] = {}


def decode_set(
    model: Path, method: str, options: dict, scp: Path, rate: int | None, nj: int
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Decode the utterances of a wav.scp, or of a feats.scp of arks.

    Args:
        model: folder of the deployed model.
        method: key of ``rules.DECODE``.
        options: of the method.
        scp: the list.
        rate: samples per second of the waves; None for arks.
        nj: processes.

    Returns:
        (utterance, text) in the order of the list, and what decode.json holds; the real-time
        factor as ``time_decoding`` measures it.

    Raises:
        UserError: an unreadable model, audio or matrix, or one that is not what was trained on.
    """
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stages 1 and 2")
    # Speech2Text loads whatever fits; this refuses what does not.
    load_model(model / "config.yaml", model / "model.pth")
    _shared.update(speech2text=load_speech2text(model, method, options), method=method)
    _shared["rate"] = rate
    # torch's thread pool does not survive a fork: one thread before and after.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = map_processes(_decode_row, rows, nj, chunk=8)
        results = list(tqdm(done, total=len(rows), desc=f"{method} {scp.parent.name}"))
        # Not while the processes above compete for the cores.
        timed = time_decoding([rows[i] for i in spread([r[2] for r in results], TIMED_UTTERANCES)])
    finally:
        torch.set_num_threads(threads)
    summary = {
        **timed,
        "utterances": len(results),
        "audio_seconds": round(sum(r[2] for r in results), 2),
        "peak_rss_mb": round(max(r[3] for r in results), 1),
        "threads": 1,
        "device": "cpu",
    }
    return [(r[0], r[1]) for r in results], summary


def spread(lengths: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` utterances (or all) that stand evenly in the order of lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    count = min(count, len(order))
    return [order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)]


def time_decoding(rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Decode ``rows`` several times in this process, on the threads that torch has now.

    Reading and features are left out, and a first pass over some is not counted.

    Returns:
        ``rtf``, processing time over audio time in the median round; ``rtf_rounds``, that of
        every round; ``rtf_utterances``.
    """
    model, method = _shared["speech2text"], _shared["method"]
    inputs = [read_input(utterance, where, model, _shared["rate"]) for utterance, where in rows]
    audio = sum(seconds for _, seconds in inputs)
    for speech, _ in inputs[::10]:
        decode(model, speech, method)
    rounds = []
    for _ in range(TIMED_ROUNDS):
        start = time.perf_counter()
        for speech, _ in inputs:
            decode(model, speech, method)
        rounds.append((time.perf_counter() - start) / audio)
    return {
        "rtf": statistics.median(rounds),
        "rtf_rounds": rounds,
        "rtf_utterances": len(inputs),
    }


def load_speech2text(model: Path, method: str, options: dict) -> Speech2Text:
    """ESPnet's inference class on a deployed model.

    Raises:
        UserError: an option that it does not know.
    """
    conf = {"ctc_weight": 1.0, "beam_size": 1, "lm_weight": 0.0}
    if method == "ctc_att_beam":
        conf = {"ctc_weight": 0.3, "beam_size": 10, "lm_weight": 0.0, **options}
    try:
        return Speech2Text(
            asr_train_config=str(model / "config.yaml"),
            asr_model_file=str(model / "model.pth"),
            device="cpu",
            **conf,
        )
    except TypeError as error:
        raise UserError(f"decode method {method}: {error}") from None


def _decode_row(row: tuple[str, str]) -> tuple[str, str, float, float]:
    """Return utterance, text, seconds of audio, and the process's peak memory in MB so far."""
    utterance, where = row
    speech, seconds = read_input(utterance, where, _shared["speech2text"], _shared["rate"])
    text = decode(_shared["speech2text"], speech, _shared["method"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return utterance, text, seconds, peak


def read_input(
    utterance: str, where: str, speech2text: Speech2Text, rate: int | None
) -> tuple[np.ndarray, float]:
    """Read what the model takes, features (frames, bins) or a wave, and its length in seconds."""
    if rate is None:
        import kaldiio

        try:
            feats = kaldiio.load_mat(where)
        except Exception as error:  # kaldiio raises many types for a damaged ark
            way_out = f"remove {Path(where).parent} and run stage 2"
            reason = type(error).__name__
            raise UserError(f"{utterance}: cannot read {where} ({reason}); {way_out}") from None
        return feats, len(feats) / _FRAMES_PER_SECOND
    wave = read_wave(where, utterance, rate)
    seconds = len(wave) / rate
    if speech2text.asr_model.frontend is None:
        bins = speech2text.asr_train_args.input_size
        return kaldi_fbank(torch.from_numpy(wave), rate, bins).numpy(), seconds
    return wave, seconds


@torch.no_grad()
def decode(speech2text: Speech2Text, speech: np.ndarray, method: str) -> str:
    """Return the best text for one utterance; empty if nothing was recognised."""
    if method == "ctc_att_beam":
        found = speech2text(speech)
        if isinstance(found, tuple):  # intermediate CTC outputs come beside
            found = found[0]
        return (found[0][0] or "") if found else ""
    model = speech2text.asr_model
    batch = torch.from_numpy(speech).unsqueeze(0)
    encoded, _ = model.encode(batch, torch.tensor([batch.shape[1]]))
    if isinstance(encoded, tuple):  # as above
        encoded = encoded[0]
    best = torch.unique_consecutive(model.ctc.argmax(encoded)[0])
    tokens = speech2text.converter.ids2tokens([i for i in best.tolist() if i != model.blank_id])
    return speech2text.tokenizer.tokens2text(tokens)
