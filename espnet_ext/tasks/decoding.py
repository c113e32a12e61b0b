"""Decoding with ESPnet's inference classes, over processes that share one loaded model."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.cls_inference import Classification
from tqdm import tqdm

from espnet_ext.data.audio import read_wave
from espnet_ext.data.fbank import kaldi_fbank
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.parallel import map_processes
from espnet_ext.errors import UserError
from espnet_ext.tasks.checkpoint import load_model

_FRAMES_PER_SECOND = 100
# What forked processes use: set before they start, so that the model is loaded once.
_shared: dict[str, Any] = {}


def decode_set(
    model: Path,
    method: str,
    options: dict,
    scp: Path,
    rate: int | None,
    nj: int,
    deltas: int = 0,
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Decode the utterances of a wav.scp, or of a feats.scp of arks.

    Args:
        model: folder of the deployed model.
        method: key of ``rules.DECODE``.
        options: of the method.
        scp: the list.
        rate: samples per second of the waves; None for arks.
        nj: processes.
        deltas: orders of differences, where features are computed here.

    Returns:
        (utterance, text) in the order of the list, and what decode.json holds. ``rtf`` is
        processing time over audio time, one thread a process, reading and features left out.

    Raises:
        UserError: an unreadable model, audio or matrix, or one that is not what was trained on.
    """
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stages 1 and 2")
    # Speech2Text loads whatever fits; this refuses what does not.
    load_model(model / "config.yaml", model / "model.pth")
    _shared.update(speech2text=load_inference(model, method, options), method=method)
    _shared.update(rate=rate, deltas=deltas)
    # torch's thread pool does not survive a fork: one thread before and after.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = map_processes(_decode_row, rows, nj, chunk=8)
        results = list(tqdm(done, total=len(rows), desc=f"{method} {scp.parent.name}"))
    finally:
        torch.set_num_threads(threads)
    seconds = sum(r[2] for r in results)
    audio = sum(r[3] for r in results)
    summary = {
        "rtf": seconds / audio,
        "audio_seconds": round(audio, 2),
        "seconds": round(seconds, 3),
        "utterances": len(results),
        "peak_rss_mb": round(max(r[4] for r in results), 1),
        "threads": 1,
        "device": "cpu",
    }
    return [(r[0], r[1]) for r in results], summary


def load_inference(model: Path, method: str, options: dict) -> Any:
    """ESPnet's inference class on a deployed model: ``Classification`` or ``Speech2Text``."""
    if method != "classify":
        return load_speech2text(model, method, options)
    found = Classification(str(model / "config.yaml"), str(model / "model.pth"))
    # Under the names that Speech2Text has.
    found.asr_model = found.classification_model
    found.asr_train_args = found.classification_train_args
    return found


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


def _decode_row(row: tuple[str, str]) -> tuple[str, str, float, float, float]:
    utterance, where = row
    inference, rate, deltas = (_shared[key] for key in ("speech2text", "rate", "deltas"))
    speech, seconds = read_input(utterance, where, inference, rate, deltas)
    start = time.perf_counter()
    text = decode(_shared["speech2text"], speech, _shared["method"])
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return utterance, text, spent, seconds, peak


def read_input(
    utterance: str, where: str, speech2text: Any, rate: int | None, deltas: int = 0
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
        bins = speech2text.asr_train_args.input_size // (1 + deltas)
        return kaldi_fbank(torch.from_numpy(wave), rate, bins, deltas).numpy(), seconds
    return wave, seconds


@torch.no_grad()
def decode(speech2text: Any, speech: np.ndarray, method: str) -> str:
    """Return the best text, or the class, of one utterance; empty if nothing was recognised."""
    if method == "classify":
        return speech2text(speech)[2]
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
