"""Decoding of data sets with a deployed model, in processes, and its real-time factor."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from espnet_ext.bridge.decoding.decoder import Decoded, Decoder, Row
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.parts import Part
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError

# Utterances that the real-time factor is measured on: of every length, and few enough to repeat.
TIMED_UTTERANCES = 50
TIMED_ROUNDS, _TIMED_SECONDS = 5, 15  # at most so many rounds; after two none begins after so long


def decode_set(decoder: Decoder, scp: Path, jobs: int, part: Part | None = None) -> list[Decoded]:
    """Decode the utterances of a wav.scp, or of a feats.scp of arks, in ``jobs`` processes.

    Args:
        decoder: the model.
        scp: the list.
        jobs: processes; they share the loaded model. On a GPU one, which cannot be shared.
        part: of the list; None: all of it.

    Returns:
        What was decoded, in the order of the list.

    Raises:
        UserError: audio or a matrix that cannot be read, or does not fit the model.
    """
    rows = rows_of(scp, part)
    batches = _batched(rows, scp, decoder)
    jobs = jobs if _on_cpu(decoder.device) else 1
    with _one_thread():
        chunk = max(1, 8 // decoder.batch_size)
        done = map_processes(Decoder.decode, batches, jobs, chunk=chunk, shared=decoder)
        bar = tqdm(done, total=len(batches), desc=f"{decoder.method} {scp.parent.name}")
        found = {result[0]: result for batch in bar for result in batch}
    return [found[utterance] for utterance, _ in rows]


def rows_of(scp: Path, part: Part | None = None) -> list[Row]:
    """The utterances of a list, or of a part of it.

    Raises:
        UserError: there is none.
    """
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stages 1 and 2")
    return rows if part is None else list(part.of(rows))


def _on_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch: its pool does not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def summary(results: Sequence[Decoded], device: str) -> dict[str, Any]:
    """The content of decode.json, except the real-time factor, of what a device decoded."""
    return {
        "utterances": len(results),
        "too_short": sum(result[4] for result in results),
        "audio_seconds": round(sum(r[2] for r in results), 2),
        "peak_rss_mb": round(max(r[3] for r in results), 1),
        "threads": 1,
        "device": device,
    }


def _batched(rows: list[Row], scp: Path, decoder: Decoder) -> list[list[Row]]:
    """Batches of utterances of similar length, longest first; single utterances in their order."""
    size = decoder.batch_size
    if not decoder.in_batches:
        return [[row] for row in rows]
    sizes = scp.with_name("utt2num_frames" if scp.name == "feats.scp" else "utt2dur")
    lengths = read_table(sizes) if sizes.is_file() else {}
    rows = sorted(rows, key=lambda row: -float(lengths.get(row[0], 0)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def spread(lengths: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` utterances (or all), evenly spaced in the order of lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    count = min(count, len(order))
    return [order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)]


def time_set(decoder: Decoder, scp: Path, results: Sequence[Decoded]) -> dict[str, Any]:
    """Return ``time_decoding`` of some utterances of every length of a list.

    It needs cores that nothing else uses.

    Args:
        decoder: the model.
        scp: the list.
        results: what was decoded, in its order.
    """
    chosen = spread([result[2] for result in results], TIMED_UTTERANCES)
    rows = rows_of(scp)
    with _one_thread():
        return time_decoding(decoder, [rows[i] for i in chosen])


def time_decoding(decoder: Decoder, rows: Sequence[Row]) -> dict[str, Any]:
    """Decode ``rows`` several times in this process, on one thread.

    Reading and features are left out, and a first pass over some is not counted. Processor time
    is measured, not time on the clock, and the least of the rounds counts: other work on the
    machine then disturbs least. On a GPU it is time on the clock; texts wait for the GPU.

    Returns:
        ``rtf``, processor time over audio time in the fastest round; ``rtf_rounds``, that of
        every round; ``rtf_utterances``; ``load``, processes that wanted to run on the machine,
        on average over the last minute.
    """
    inputs = [decoder.read(row) for row in rows]
    audio = sum(seconds for _, seconds in inputs)
    speeches, size = [speech for speech, _ in inputs], decoder.batch_size
    batches = [speeches[k : k + size] for k in range(0, len(speeches), size)]
    decoder.texts(speeches[::10])
    rounds: list[float] = []
    clock = time.process_time if _on_cpu(decoder.device) else time.perf_counter
    while len(rounds) < TIMED_ROUNDS:
        if len(rounds) > 1 and sum(rounds) * audio > _TIMED_SECONDS:
            break  # a slow system is measured twice
        start = clock()
        for batch in batches:
            decoder.texts(batch)
        rounds.append((clock() - start) / audio)
    return {
        "rtf": min(rounds),
        "rtf_rounds": rounds,
        "rtf_utterances": len(inputs),
        "load": round(os.getloadavg()[0], 2),
    }
