"""Decoding a set, over processes that share one loaded model.

Text and tokens are ESPnet's ``Speech2Text``; transducers are searched in batches by ours.
"""

import resource
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
from espnet_ext.models.transducer_search import BeamSearch, GreedySearch, Search
from espnet_ext.tasks.checkpoint import load_model
from espnet_ext.tasks.rules import TRANSDUCER

_FRAMES_PER_SECOND = 100
_BATCH = 16
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
    _shared.update(speech2text=load_speech2text(model, method, options), method=method)
    _shared.update(rate=rate, search=search_of(_shared["speech2text"].asr_model, method, options))
    # torch's thread pool does not survive a fork: one thread before and after.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = batched(rows, scp, int(options.get("batch_size", _BATCH)), method)
        done = map_processes(_decode_rows, batches, nj, chunk=max(1, 8 // len(batches[0])))
        bar = tqdm(done, total=len(batches), desc=f"{method} {scp.parent.name}")
        found = {result[0]: result for batch in bar for result in batch}
        results = [found[utterance] for utterance, _ in rows]
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


def search_of(model: Any, method: str, options: dict) -> Search | None:
    """The search of a transducer method, else None."""
    if method == "transducer_greedy":
        return GreedySearch(model)
    return BeamSearch(model, options.get("beam_size", 4)) if method == "transducer_beam" else None


def batched(
    rows: list[tuple[str, str]], scp: Path, size: int, method: str
) -> list[list[tuple[str, str]]]:
    """Rows in batches of ``size`` utterances of like length, longest first; others one by one."""
    if method not in TRANSDUCER:
        return [[row] for row in rows]
    sizes = scp.with_name("utt2num_frames" if scp.name == "feats.scp" else "utt2dur")
    lengths = read_table(sizes) if sizes.is_file() else {}
    rows = sorted(rows, key=lambda row: -float(lengths.get(row[0], 0)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _decode_rows(rows: list[tuple[str, str]]) -> list[tuple[str, str, float, float, float]]:
    speech2text = _shared["speech2text"]
    inputs = [read_input(*row, speech2text, _shared["rate"]) for row in rows]
    start = time.perf_counter()
    if _shared["search"] is None:
        texts = [decode(speech2text, speech, _shared["method"]) for speech, _ in inputs]
    else:
        texts = decode_batch(speech2text, [speech for speech, _ in inputs], _shared["search"])
    spent = (time.perf_counter() - start) / sum(seconds for _, seconds in inputs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        (utterance, text, spent * seconds, seconds, peak)
        for (utterance, _), text, (_, seconds) in zip(rows, texts, inputs, strict=True)
    ]


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
    return text_of(speech2text, [i for i in best.tolist() if i != model.blank_id])


@torch.no_grad()
def decode_batch(speech2text: Speech2Text, batch: list[np.ndarray], search: Search) -> list[str]:
    """Return the best text of each utterance of a transducer, all decoded together."""
    lengths = torch.tensor([len(speech) for speech in batch])
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(speech) for speech in batch], batch_first=True
    )
    encoded, frames = speech2text.asr_model.encode(padded, lengths)
    if isinstance(encoded, tuple):
        encoded = encoded[0]
    found = search.results(search.advance(encoded, frames, search.start(len(batch))))
    return [text_of(speech2text, hypothesis.tokens) for hypothesis in found]


def text_of(speech2text: Speech2Text, tokens: Sequence[int]) -> str:
    """Text of token ids."""
    return speech2text.tokenizer.tokens2text(speech2text.converter.ids2tokens(list(tokens)))
