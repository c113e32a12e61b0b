"""Decoding with a deployed model: by ESPnet's inference classes; in batches by our searches."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.cls_inference import Classification
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from tqdm import tqdm

from espnet_ext.bridge.checkpoint import fill, read_config, read_weights
from espnet_ext.bridge.memory import peak_rss_mb
from espnet_ext.bridge.muted import muted
from espnet_ext.bridge.speech_input import SpeechInput
from espnet_ext.config.recipe_errors import ATTENTION_GREEDY, ATTENTION_STREAM, TRANSDUCER
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.pauses import cut_at_pauses
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError
from espnet_ext.files import weights_file
from espnet_ext.formats.building import building
from espnet_ext.models.attention_search import attention_greedy
from espnet_ext.models.attention_stream import FirstPass
from espnet_ext.models.transducer_search import BeamSearch, GreedySearch, Search
from espnet_ext.models.whisper_decoder import TOKENS_PER_SECOND

type Row = tuple[str, str]  # utterance, path of its audio or place in an ark
# Utterance, text, seconds, peak memory in MB, and whether it is too short for a frame.
type Decoded = tuple[str, str, float, float, bool]

_BATCH = 16
_TOO_SHORT = (TooShortUttError, UserError, AssertionError, IndexError, RuntimeError, ValueError)
# Utterances that the real-time factor is measured on: of every length, and few enough to repeat.
TIMED_UTTERANCES = 50
TIMED_ROUNDS = 5


class Decoder:
    """A deployed model with one decoding method.

    Args:
        folder: of the deployed model.
        method: key of ``recipe_errors.DECODE``.
        options: of the method.
        source: how its input is read.

    Raises:
        UserError: an option that ESPnet does not know, or weights that are not the model's.
    """

    def __init__(self, folder: Path, method: str, options: dict, source: SpeechInput):
        self.method = method
        self.source = source
        self.inference = load_inference(folder, method, options)
        self.model: Any = self.inference.asr_model
        arguments = self.inference.asr_train_args
        self.width = arguments.input_size if self.model.frontend is None else None
        self.search = transducer_search(self.model, method, options)
        self.in_batches = method in (ATTENTION_GREEDY, *TRANSDUCER)
        self.batch_size = int(options.get("batch_size", _BATCH)) if self.in_batches else 1
        self.tokens_per_second = float(options.get("tokens_per_second", TOKENS_PER_SECOND))
        # Of samples, which a pretrained encoder may have positions for up to a length only.
        self.most_samples = getattr(self.model.encoder, "most_samples", None)

    def read(self, row: Row) -> tuple[np.ndarray, float]:
        """The model's input of one utterance, and its length in seconds."""
        return self.source.read(*row, self.width)

    def texts(self, batch: Sequence[np.ndarray]) -> list[str]:
        """The best text, or the class, of each utterance; empty if nothing was recognised.

        Speech that is too long for the model is cut at pauses, and the texts are joined.
        """
        parts = [self._pieces(speech) for speech in batch]
        pieces = [piece for cut in parts for piece in cut]
        texts: list[str] = []
        for start in range(0, len(pieces), self.batch_size):
            texts += self._texts(pieces[start : start + self.batch_size])
        found = iter(texts)
        return [" ".join(filter(None, (next(found) for _ in cut))) for cut in parts]

    def _pieces(self, speech: np.ndarray) -> list[np.ndarray]:
        """The parts of an utterance that are decoded one by one; none if it is too short.

        Every utterance has a class: one that is too short is lengthened by silence, or by its last
        frame.
        """
        while self.is_too_short(speech):
            if self.method != "classify":
                return []
            more = [(0, max(len(speech), 1)), *[(0, 0)] * (speech.ndim - 1)]
            speech = np.pad(speech, more, mode="edge" if speech.ndim > 1 else "constant")
        if self.most_samples is None or self.method == "classify":
            return [speech]
        return cut_at_pauses(speech, self.most_samples, self.source.rate)

    @torch.no_grad()
    def is_too_short(self, speech: np.ndarray) -> bool:
        """True if the encoder has no frame of an input, by whatever error it says so."""
        if not self.source.is_short(speech):
            return False
        try:
            return int(self._encode([speech])[1][0]) < 1
        except _TOO_SHORT:
            return True

    def decode(self, rows: Sequence[Row]) -> list[Decoded]:
        """Read and decode a batch."""
        inputs = [self.read(row) for row in rows]
        texts = self.texts([speech for speech, _ in inputs])
        peak = peak_rss_mb()
        return [
            (utterance, text, seconds, peak, self.is_too_short(speech))
            for (utterance, _), text, (speech, seconds) in zip(rows, texts, inputs, strict=True)
        ]

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        pieces = self.inference.converter.ids2tokens(list(tokens))
        return self.inference.tokenizer.tokens2text(pieces)

    def _texts(self, batch: Sequence[np.ndarray]) -> list[str]:
        if self.method == ATTENTION_STREAM:
            first = FirstPass(self.model, self.tokens_per_second)
            return [self.text_of(first.text(speech, self.source.rate)) for speech in batch]
        if self.method == ATTENTION_GREEDY:
            return self._attend_together(batch)
        if self.search is not None:
            return self._search_together(batch)
        return [self._text(speech) for speech in batch]

    @torch.no_grad()
    def _text(self, speech: np.ndarray) -> str:
        if self.method == "classify":
            return self.inference(speech)[2]
        if self.method == "ctc_att_beam":
            found = self.inference(speech)
            if isinstance(found, tuple):  # with outputs of intermediate CTC
                found = found[0]
            if found and self.model.ctc is None:  # then no token is the blank, which it leaves out
                return self.text_of(found[0][3].yseq[1:-1].tolist())
            return (found[0][0] or "") if found else ""
        encoded, _ = self._encode([speech])
        best = torch.unique_consecutive(self.model.ctc.argmax(encoded)[0])
        return self.text_of([i for i in best.tolist() if i != self.model.blank_id])

    @torch.no_grad()
    def _search_together(self, batch: Sequence[np.ndarray]) -> list[str]:
        assert self.search is not None
        encoded, frames = self._encode(batch)
        state = self.search.advance(encoded, frames, self.search.start(len(batch)))
        return [self.text_of(found.tokens) for found in self.search.results(state)]

    @torch.no_grad()
    def _attend_together(self, batch: Sequence[np.ndarray]) -> list[str]:
        encoded, frames = self._encode(batch)
        decoder = self.model.decoder
        seconds = [len(speech) / self.source.rate for speech in batch]
        most = [decoder.most_tokens(length, self.tokens_per_second) for length in seconds]
        found = attention_greedy(decoder, encoded, frames, most)
        return [self.text_of(tokens) for tokens in found]

    def _encode(self, batch: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (utterances, frames, width) and frames (utterances,)."""
        lengths = torch.tensor([len(speech) for speech in batch])
        tensors = [torch.from_numpy(speech) for speech in batch]
        padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        encoded, frames = self.model.encode(padded, lengths)
        return (encoded[0] if isinstance(encoded, tuple) else encoded), frames  # as above


def decode_set(
    decoder: Decoder, scp: Path, jobs: int, timed: bool = True
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Decode the utterances of a wav.scp, or of a feats.scp of arks, in ``jobs`` processes.

    Args:
        decoder: the model.
        scp: the list.
        jobs: processes; they share the loaded model.
        timed: measure the real-time factor, which needs cores that nothing else uses.

    Returns:
        (utterance, text) in the order of the list, and the content of decode.json; with the
        real-time factor of ``time_decoding`` if it was measured.

    Raises:
        UserError: audio or a matrix that cannot be read, or does not fit the model.
    """
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stages 1 and 2")
    batches = _batched(rows, scp, decoder)
    # torch's thread pool does not survive a fork: one thread before and after.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chunk = max(1, 8 // decoder.batch_size)
        done = map_processes(Decoder.decode, batches, jobs, chunk=chunk, shared=decoder)
        bar = tqdm(done, total=len(batches), desc=f"{decoder.method} {scp.parent.name}")
        found = {result[0]: result for batch in bar for result in batch}
        results = [found[utterance] for utterance, _ in rows]
        speed: dict[str, Any] = {}
        if timed:  # after the processes above have ended, which compete for the cores
            chosen = spread([result[2] for result in results], TIMED_UTTERANCES)
            speed = time_decoding(decoder, [rows[i] for i in chosen])
    finally:
        torch.set_num_threads(threads)
    return [(utterance, text) for utterance, text, *_ in results], speed | _summary(results)


def _summary(results: Sequence[Decoded]) -> dict[str, Any]:
    """The content of decode.json, besides the real-time factor."""
    return {
        "utterances": len(results),
        "too_short": sum(result[4] for result in results),
        "audio_seconds": round(sum(r[2] for r in results), 2),
        "peak_rss_mb": round(max(r[3] for r in results), 1),
        "threads": 1,
        "device": "cpu",
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


def time_decoding(decoder: Decoder, rows: Sequence[Row]) -> dict[str, Any]:
    """Decode ``rows`` several times in this process, on one thread.

    Reading and features are left out, and a first pass over some is not counted. Processor time
    is measured, not time on the clock, and the least of the rounds counts: other work on the
    machine then disturbs least.

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
    rounds = []
    for _ in range(TIMED_ROUNDS):
        start = time.process_time()
        for batch in batches:
            decoder.texts(batch)
        rounds.append((time.process_time() - start) / audio)
    return {
        "rtf": min(rounds),
        "rtf_rounds": rounds,
        "rtf_utterances": len(inputs),
        "load": round(os.getloadavg()[0], 2),
    }


def load_inference(folder: Path, method: str, options: dict) -> Any:
    """ESPnet's inference class on a deployed model: ``Classification`` or ``Speech2Text``.

    ESPnet loads whatever fits; here the weights are loaded strictly.

    Raises:
        UserError: an option that it does not know, or weights that are not the model's.
    """
    config, weights = folder / "config.yaml", weights_file(folder)
    read_config(config)  # ESPnet reads it without checks
    state = read_weights(weights)
    with muted(), building(state, config):
        found = _espnet_inference(str(config), method, options)
    fill(found.asr_model, state, weights)
    return found


def _espnet_inference(config: str, method: str, options: dict) -> Any:
    """ESPnet's inference class on a config, its weights not loaded."""
    if method == "classify":
        found: Any = Classification(config, None)
        # Under the names that Speech2Text has.
        found.asr_model = found.classification_model
        found.asr_train_args = found.classification_train_args
        return found
    conf = {"ctc_weight": 1.0, "beam_size": 1, "lm_weight": 0.0}
    if method == "ctc_att_beam":
        conf = {"ctc_weight": 0.3, "beam_size": 10, "lm_weight": 0.0, **options}
    try:
        return Speech2Text(asr_train_config=config, device="cpu", **conf)
    except TypeError as error:
        raise UserError(f"decode method {method}: {str(error).splitlines()[0]}") from None


def transducer_search(model: Any, method: str, options: dict) -> Search | None:
    """The search of a transducer method; None of another method."""
    if method not in TRANSDUCER:
        return None
    if method == "transducer_greedy":
        return GreedySearch(model)
    return BeamSearch(model, options.get("beam_size", 4))
