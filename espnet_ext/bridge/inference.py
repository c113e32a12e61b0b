"""Decoding a set, over processes that share one loaded model.

Text, tokens and classes are those of ESPnet's inference classes; transducers are searched in
batches by ours.
"""

import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.cls_inference import Classification
from tqdm import tqdm

from espnet_ext.bridge.checkpoint import load_model, load_weights
from espnet_ext.config.recipe_errors import TRANSDUCER
from espnet_ext.data.audio import read_wave
from espnet_ext.data.fbank import kaldi_fbank
from espnet_ext.data.features import FRAMES_PER_SECOND
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError
from espnet_ext.files import PACKED, weights_file
from espnet_ext.models.transducer_search import BeamSearch, GreedySearch, Search

_BATCH = 16
# What the real-time factor is measured on: enough to hold every length, few enough to repeat.
TIMED_UTTERANCES = 50
TIMED_ROUNDS = 5
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
    timed: bool = True,
    frames: float = FRAMES_PER_SECOND,
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
        timed: measure the real-time factor, which takes cores that nobody else uses.
        frames: frames per second of arks.

    Returns:
        (utterance, text) in the order of the list, and what decode.json holds; the real-time
        factor as ``time_decoding`` measures it, if it does.

    Raises:
        UserError: an unreadable model, audio or matrix, or one that is not what was trained on.
    """
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stages 1 and 2")
    # Speech2Text loads whatever fits; this refuses what does not.
    load_model(model / "config.yaml", weights_file(model))
    speech2text = load_inference(model, method, options)
    search = search_of(speech2text.asr_model, method, options)
    _shared.update(speech2text=speech2text, method=method, search=search)
    _shared.update(rate=rate, deltas=deltas, frames=frames)
    # torch's thread pool does not survive a fork: one thread before and after.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = batched(rows, scp, int(options.get("batch_size", _BATCH)), method)
        done = map_processes(_decode_rows, batches, nj, chunk=max(1, 8 // len(batches[0])))
        bar = tqdm(done, total=len(batches), desc=f"{method} {scp.parent.name}")
        found = {result[0]: result for batch in bar for result in batch}
        results = [found[utterance] for utterance, _ in rows]
        # Not while the processes above compete for the cores.
        chosen = spread([r[2] for r in results], TIMED_UTTERANCES)
        speed = time_decoding([rows[i] for i in chosen], len(batches[0])) if timed else {}
    finally:
        torch.set_num_threads(threads)
    return [(r[0], r[1]) for r in results], speed | _summary(results)


def _summary(results: Sequence[tuple[str, str, float, float]]) -> dict[str, Any]:
    """What decode.json holds of all utterances, besides the real-time factor."""
    return {
        "utterances": len(results),
        "audio_seconds": round(sum(r[2] for r in results), 2),
        "peak_rss_mb": round(max(r[3] for r in results), 1),
        "threads": 1,
        "device": "cpu",
    }


def load_inference(model: Path, method: str, options: dict) -> Any:
    """ESPnet's inference class on a deployed model: ``Classification`` or ``Speech2Text``."""
    if method != "classify":
        return load_speech2text(model, method, options)
    found = Classification(str(model / "config.yaml"), _espnet_file(model))
    # Under the names that Speech2Text has.
    found.asr_model = found.classification_model
    found.asr_train_args = found.classification_train_args
    return _with_packed(found, model)


def _espnet_file(model: Path) -> str | None:
    """The file of weights that ESPnet's inference classes can read, if there is one."""
    weights = weights_file(model)
    return None if weights.name == PACKED else str(weights)


def _with_packed(found: Any, model: Path) -> Any:
    """ESPnet's inference class, the weights of a packed form loaded into its model."""
    if _espnet_file(model) is None:
        load_weights(found.asr_model, weights_file(model))
    return found


def spread(lengths: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` utterances (or all) that stand evenly in the order of lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    count = min(count, len(order))
    return [order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)]


def time_decoding(rows: Sequence[tuple[str, str]], size: int = 1) -> dict[str, Any]:
    """Decode ``rows``, ``size`` together, several times in this process, on torch's threads.

    Reading and features are left out, and a first pass over some is not counted.

    Returns:
        ``rtf``, processing time over audio time in the median round; ``rtf_rounds``, that of
        every round; ``rtf_utterances``.
    """
    inputs = _read(rows)
    audio = sum(seconds for _, seconds in inputs)
    speeches = [speech for speech, _ in inputs]
    batches = [speeches[k : k + size] for k in range(0, len(speeches), size)]
    texts_of(speeches[::10])
    rounds = []
    for _ in range(TIMED_ROUNDS):
        start = time.perf_counter()
        for batch in batches:
            texts_of(batch)
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
        found = Speech2Text(
            asr_train_config=str(model / "config.yaml"),
            asr_model_file=_espnet_file(model),
            device="cpu",
            **conf,
        )
    except TypeError as error:
        raise UserError(f"decode method {method}: {error}") from None
    return _with_packed(found, model)


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


def _decode_rows(rows: list[tuple[str, str]]) -> list[tuple[str, str, float, float]]:
    """For each row utterance, text, seconds of audio, and this process's peak memory in MB."""
    inputs = _read(rows)
    texts = texts_of([speech for speech, _ in inputs])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        (utterance, text, seconds, peak)
        for (utterance, _), text, (_, seconds) in zip(rows, texts, inputs, strict=True)
    ]


def _read(rows: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, float]]:
    """Inputs and lengths of rows, for the model that processes share."""
    keys = ("speech2text", "rate", "deltas", "frames")
    return [read_input(*row, *(_shared[key] for key in keys)) for row in rows]


def texts_of(speeches: list[np.ndarray]) -> list[str]:
    """Texts of a batch, by the model and method that processes share."""
    if _shared["search"] is not None:
        return decode_batch(_shared["speech2text"], speeches, _shared["search"])
    return [decode(_shared["speech2text"], speech, _shared["method"]) for speech in speeches]


def read_input(
    utterance: str,
    where: str,
    speech2text: Any,
    rate: int | None,
    deltas: int = 0,
    frames: float = FRAMES_PER_SECOND,
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
        return feats, len(feats) / frames
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
