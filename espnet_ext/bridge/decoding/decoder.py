"""Decoding with a deployed model: by ESPnet's inference classes; in batches by our searches."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.cls_inference import Classification
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_ext.bridge.build import with_statistics
from espnet_ext.bridge.checkpoint import fill
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.bridge.memory import peak_rss_mb
from espnet_ext.bridge.muted import muted
from espnet_ext.config.decoding import (
    ATTENTION_BEAM,
    ATTENTION_GREEDY,
    ATTENTION_STREAM,
    CLASSIFY,
    CTC_BEAM,
    TOKENS_PER_SECOND,
    TRANSDUCER,
    decoding_options,
)
from espnet_ext.data.audio import filled_up
from espnet_ext.data.pauses import cut_at_pauses
from espnet_ext.encoders.pretrained.features import LayerFeatures
from espnet_ext.errors import UserError
from espnet_ext.formats.building import building
from espnet_ext.models.attention_beam import attention_beam
from espnet_ext.models.attention_search import attention_greedy
from espnet_ext.models.local_agreement import FirstPass
from espnet_ext.models.transducer_search import BeamSearch, GreedySearch, Search
from espnet_ext.recogniser import Found, mean_probability

type Row = tuple[str, str]  # utterance, path of its audio or place in an ark
# Utterance, text, seconds, peak memory in MB, and whether it is too short for a frame.
type Decoded = tuple[str, str, float, float, bool]

_LONGEST = 30  # seconds of a recording that are decoded at once
_TOO_SHORT = (TooShortUttError, UserError, AssertionError, IndexError, RuntimeError, ValueError)


class Decoder:
    """A deployed model with one decoding method.

    Args:
        model: its folder, or what was read of it.
        method: key of ``config.decoding.DECODE``.
        options: of the method.
        source: how its input is read.
        device: torch's name of where it is computed.

    Raises:
        UserError: a wrong option of the method, or weights that are not the model's.
    """

    def __init__(
        self,
        model: Path | Bundle,
        method: str,
        options: dict,
        source: SpeechInput,
        device: str = "cpu",
    ):
        self.method = method
        self.source = source
        self.device = device
        bundle = model if isinstance(model, Bundle) else Bundle.of_folder(model)
        chosen = decoding_options(method, options or {}, str(bundle.path))
        self.inference = load_inference(bundle, method, chosen, device)
        self.model: Any = self.inference.asr_model
        if source.layers and not source.from_arks:
            self.model.frontend = LayerFeatures(bundle.features()).to(device)
        arguments = self.inference.asr_train_args
        self.width = arguments.input_size if self.model.frontend is None else None
        self.beam_size = getattr(chosen, "beam_size", 1)
        self.search = transducer_search(self.model, method, self.beam_size)
        self.in_batches = method in (ATTENTION_GREEDY, ATTENTION_BEAM, *TRANSDUCER)
        self.batch_size = chosen.batch_size if self.in_batches else 1
        self.tokens_per_second = getattr(chosen, "tokens_per_second", TOKENS_PER_SECOND)
        # Of samples, which a pretrained encoder may have positions for up to a length only.
        features = getattr(self.model.frontend, "stack", self.model.encoder)
        self.most_samples = getattr(features, "most_samples", None)

    def read(self, row: Row) -> tuple[np.ndarray, float]:
        """The model's input of one utterance, and its length in seconds."""
        return self.source.read(*row, self.width)

    def texts(self, batch: Sequence[np.ndarray]) -> list[str]:
        """The best text, or the class, of each utterance; empty if nothing was recognised.

        Speech that is too long for the model is cut at pauses, and the texts are joined.
        """
        parts = [self.pieces(speech) for speech in batch]
        found = iter(self._found([piece for cut in parts for piece in cut]))
        return [" ".join(filter(None, (next(found).text for _ in cut))) for cut in parts]

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.source.rate

    @property
    def longest(self) -> int | None:
        """Samples that are decoded at once (``recogniser.SegmentDecoder``)."""
        if self.method == CLASSIFY:
            return None
        most = _LONGEST * self.rate
        return most if self.most_samples is None else min(most, self.most_samples)

    def decode_waves(self, waves: Sequence[np.ndarray]) -> list[Found]:
        """Search waves (samples,) of ``longest`` at most; in too short ones there is nothing."""
        inputs = [self._inputs(wave) for wave in waves]
        found = iter(self._found([one for given in inputs for one in given], scored=True))
        return [next(found) if given else Found("") for given in inputs]

    def _inputs(self, wave: np.ndarray) -> list[np.ndarray]:
        """The input of the model for a wave; none if it is shorter than a frame."""
        filled = torch.from_numpy(filled_up(wave, self.rate))
        return self.pieces(self.source.prepared(filled, self.width).numpy())

    def _found(self, pieces: Sequence[np.ndarray], scored: bool = False) -> list[Found]:
        """Search each of ``pieces``; with ``scored`` attention tells its confidence too."""
        found: list[Found] = []
        for start in range(0, len(pieces), self.batch_size):
            found += self._batch(pieces[start : start + self.batch_size], scored)
        return found

    def pieces(self, speech: np.ndarray) -> list[np.ndarray]:
        """The parts of an utterance that are decoded one by one; none if it is too short.

        Every utterance has a class: one that is too short is lengthened by silence, or by its last
        frame.
        """
        while self.is_too_short(speech):
            if self.method != CLASSIFY:
                return []
            more = [(0, max(len(speech), 1)), *[(0, 0)] * (speech.ndim - 1)]
            speech = np.pad(speech, more, mode="edge" if speech.ndim > 1 else "constant")
        if self.most_samples is None or self.method == CLASSIFY:
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
        return self.inference.tokenizer.tokens2text(self.names_of(tokens))

    def names_of(self, tokens: Sequence[int]) -> list[str]:
        """Names of token ids, as in the list of tokens."""
        return self.inference.converter.ids2tokens(list(tokens))

    def _batch(self, batch: Sequence[np.ndarray], scored: bool) -> list[Found]:
        if self.method == ATTENTION_STREAM:
            first = FirstPass(self.model, self.tokens_per_second)
            return [Found(self.text_of(first.text(one, self.source.rate))) for one in batch]
        if self.method in (ATTENTION_GREEDY, ATTENTION_BEAM):
            return self._attend_together(batch, scored)
        if self.search is not None:
            return self._search_together(batch)
        return [self._one(speech) for speech in batch]

    @torch.no_grad()
    def _one(self, speech: np.ndarray) -> Found:
        if self.method == CLASSIFY:
            _, scores, name = self.inference(speech)
            return Found(name, float(scores.max()))
        if self.method == CTC_BEAM:
            found = self.inference(speech)
            if isinstance(found, tuple):  # with outputs of intermediate CTC
                found = found[0]
            if found and self.model.ctc is None:  # then no token is the blank, which it leaves out
                return Found(self.text_of(found[0][3].yseq[1:-1].tolist()))
            return Found((found[0][0] or "") if found else "")
        encoded, _ = self._encode([speech])
        scores, best = self.model.ctc.log_softmax(encoded)[0].max(-1)
        first = best != best.roll(1)
        first[:1] = True
        frames = (first & (best != self.model.blank_id)).nonzero()[:, 0]
        score = float(scores[frames].sum())
        return self._aligned(best[frames].tolist(), score, frames.tolist(), len(best))

    def _aligned(
        self, tokens: Sequence[int], score: float, frames: Sequence[int], length: int
    ) -> Found:
        """Tokens of a log-probability, each at one of ``length`` frames."""
        places = [frame / length for frame in frames]
        return Found(self.text_of(tokens), mean_probability(score, len(tokens)), tokens, places)

    @torch.no_grad()
    def _search_together(self, batch: Sequence[np.ndarray]) -> list[Found]:
        assert self.search is not None
        encoded, frames = self._encode(batch)
        state = self.search.advance(encoded, frames, self.search.start(len(batch)))
        return [
            self._aligned(one.tokens, one.score, one.frames, int(length))
            for one, length in zip(self.search.results(state), frames, strict=True)
        ]

    @torch.no_grad()
    def _attend_together(self, batch: Sequence[np.ndarray], scored: bool) -> list[Found]:
        encoded, frames = self._encode(batch)
        decoder = self.model.decoder
        seconds = [len(speech) / self.source.rate for speech in batch]
        most = [decoder.most_tokens(length, self.tokens_per_second) for length in seconds]
        if self.method == ATTENTION_BEAM:
            texts = attention_beam(decoder, encoded, frames, most, self.beam_size)
            return [self._attended(text.tokens, text.score) for text in texts]
        if not scored:  # a softmax over all tokens at every step
            found = attention_greedy(decoder, encoded, frames, most)
            return [Found(self.text_of(tokens)) for tokens in found]
        scores: list[float] = []
        found = attention_greedy(decoder, encoded, frames, most, scores=scores)
        return list(map(self._attended, found, scores))

    def _attended(self, tokens: Sequence[int], score: float) -> Found:
        """Tokens of a log-probability, which attention does not align."""
        return Found(self.text_of(tokens), mean_probability(score, len(tokens)))

    def _encode(self, batch: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (utterances, frames, width) and frames (utterances,)."""
        lengths = torch.tensor([len(speech) for speech in batch])
        tensors = [torch.from_numpy(speech) for speech in batch]
        padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        encoded, frames = self.model.encode(padded.to(self.device), lengths.to(self.device))
        return (encoded[0] if isinstance(encoded, tuple) else encoded), frames  # as above


def load_inference(bundle: Bundle, method: str, options: Any, device: str = "cpu") -> Any:
    """ESPnet's inference class on a deployed model: ``Classification`` or ``Speech2Text``.

    ESPnet loads whatever fits; here the weights are loaded strictly.

    ``options`` are of ``decoding_options``.

    Raises:
        UserError: weights that are not the model's.
    """
    state = dict(bundle.state)
    with tempfile.TemporaryDirectory() as scratch, muted(), building(state, bundle.path):
        arguments = with_statistics(bundle.arguments, state, Path(scratch))
        config = Path(scratch) / "config.yaml"  # the class takes a file alone
        config.write_text(yaml.safe_dump(arguments, allow_unicode=True), encoding="utf-8")
        found = _espnet_inference(str(config), method, options, device)
    fill(found.asr_model, state, bundle.path)
    return found


def _espnet_inference(config: str, method: str, options: Any, device: str) -> Any:
    """ESPnet's inference class on a config, its weights not loaded."""
    if method == CLASSIFY:
        found: Any = Classification(config, None, device=device)
        # Under the names that Speech2Text has.
        found.asr_model = found.classification_model
        found.asr_train_args = found.classification_train_args
        return found
    conf = asdict(options) if method == CTC_BEAM else {"ctc_weight": 1.0, "beam_size": 1}
    return Speech2Text(asr_train_config=config, device=device, lm_weight=0.0, **conf)


def transducer_search(model: Any, method: str, beam_size: int) -> Search | None:
    """The search of a transducer method; None of another method."""
    if method not in TRANSDUCER:
        return None
    if method == TRANSDUCER[0]:
        return GreedySearch(model)
    return BeamSearch(model, beam_size)
