"""Greedy and beam search of transducers, batched over utterances and resumable.

Both emit at most one token per frame, as ESPnet's greedy search does, so that all utterances of a
batch advance frame by frame. Encoded frames may come all at once or chunk by chunk: the same
frames give the same tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espnet_ext.errors import UserError

_WINDOW = 8  # frames in which greedy search looks for the next token at once
OPEN_TOKENS = 100  # of a hypothesis: at most so many follow those that are certain
State = tuple[Tensor, Tensor | None]  # of the predictor: (layers, rows, width), cell of an LSTM


@dataclass(frozen=True)
class Hypothesis:
    """A result: tokens without blanks, and their log-probability summed over alignments."""

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...] = field(default=(), compare=False)  # encoder frame of each token


class Search(ABC):
    """Base class of the searches: their interface, and one step of predictor and joiner."""

    @abstractmethod
    def start(self, batch: int, device: torch.device | str = "cpu") -> Any:
        """Return the state of ``batch`` streams before their first frame."""

    @abstractmethod
    def advance(self, encoded: Tensor, lengths: Tensor, state: Any) -> Any:
        """Process frames (B, T, d), ``lengths`` (B,) of them; change and return ``state``."""

    @abstractmethod
    def commit(self, state: Any) -> list[Hypothesis]:
        """Remove the tokens that will not change any more from each stream; return them."""

    @abstractmethod
    def results(self, state: Any) -> list[Hypothesis]:
        """Return the best hypothesis of each stream so far, without committed tokens."""

    def __init__(self, model: Any):
        if not getattr(model, "use_transducer_decoder", False):
            raise UserError("this model is no transducer; decode it with ctc_greedy")
        self.predictor = model.decoder
        self.joiner = model.joint_network
        self.blank = model.blank_id

    def _start(self, rows: int, device: torch.device) -> tuple[Tensor, State]:
        """Return the projected output (rows, J) of the predictor after blank, and its state."""
        self.predictor.set_device(device)
        labels = torch.full((rows,), self.blank, device=device)
        return self._step(labels, self.predictor.init_state(rows))

    def _step(self, labels: Tensor, state: State) -> tuple[Tensor, State]:
        """Feed one label (rows,) to the predictor."""
        self.predictor.set_device(labels.device)
        embedded = self.predictor.embed(labels.unsqueeze(1))
        out, state = self.predictor.rnn_forward(embedded, state)
        return self.joiner.lin_dec(out.squeeze(1)), state

    def logits(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return scores (rows, V) of tokens; both arguments are projected to the joiner's width."""
        return self.joiner(encoded, predicted, no_projection=True)


def _map(function: Callable[..., Tensor], *states: State) -> State:
    """Apply a function to the parts of predictor states; only an LSTM has the second part."""
    hidden, cells = zip(*states, strict=True)
    return function(*hidden), None if cells[0] is None else function(*cells)


@dataclass
class GreedyState:
    """State of a greedy search of B streams."""

    predicted: Tensor  # (B, J)
    state: State
    tokens: list[list[int]]
    frames: list[list[int]]
    scores: Tensor  # (B,)
    time: int = 0


class GreedySearch(Search):
    """The best token of every frame; equal to ESPnet's greedy search of each utterance."""

    def start(self, batch: int, device: torch.device | str = "cpu") -> GreedyState:
        predicted, state = self._start(batch, torch.device(device))
        empty: list[list[int]] = [[] for _ in range(batch)]
        scores = torch.zeros(batch, device=device)
        return GreedyState(predicted, state, empty, [[] for _ in range(batch)], scores)

    @torch.no_grad()
    def advance(self, encoded: Tensor, lengths: Tensor, state: GreedyState) -> GreedyState:
        """Process frames; see ``Search``.

        Every stream searches a window of frames for its next token: the predictor runs as often
        as the longest result has tokens, not once per frame.
        """
        projected = self.joiner.lin_enc(encoded)
        window = torch.arange(min(_WINDOW, encoded.shape[1]), device=encoded.device)
        position = torch.zeros_like(lengths)
        while len(window) and bool((position < lengths).any()):
            index = position.unsqueeze(1) + window
            inside = index < lengths.unsqueeze(1)
            index = index.clamp(max=encoded.shape[1] - 1)
            frames = projected.gather(1, index.unsqueeze(2).expand(-1, -1, projected.shape[2]))
            logits = self.logits(frames, state.predicted.unsqueeze(1))
            best, token = logits.max(-1)
            emits = (token != self.blank) & inside
            first = (emits.cumsum(1) == 0).sum(1)  # the first that emits, or the width
            used = inside & (window <= first.unsqueeze(1))
            state.scores = state.scores + ((best - logits.logsumexp(-1)) * used).sum(1)
            position = position + used.sum(1)
            rows = emits.any(1).nonzero().squeeze(1)
            if len(rows):
                self._emit(rows, token[rows, first[rows]], index[rows, first[rows]], state)
        state.time += encoded.shape[1]
        return state

    def _emit(self, rows: Tensor, labels: Tensor, frames: Tensor, state: GreedyState) -> None:
        """Append a token to each of ``rows`` and feed it to the predictor."""
        columns = (rows.tolist(), labels.tolist(), frames.tolist())
        for row, label, frame in zip(*columns, strict=True):
            state.tokens[row].append(label)
            state.frames[row].append(state.time + frame)
        new, inner = self._step(labels, _map(lambda part: part[:, rows], state.state))
        state.predicted = state.predicted.index_copy(0, rows, new)
        state.state = _map(lambda old, part: old.index_copy(1, rows, part), state.state, inner)

    def commit(self, state: GreedyState) -> list[Hypothesis]:
        """Remove and return all tokens: none will change."""
        committed = self.results(state)
        state.tokens, state.frames = [[] for _ in committed], [[] for _ in committed]
        return committed

    def results(self, state: GreedyState) -> list[Hypothesis]:
        scores = state.scores.tolist()
        return [
            Hypothesis(tuple(tokens), score, tuple(frames))
            for tokens, score, frames in zip(state.tokens, scores, state.frames, strict=True)
        ]


@dataclass
class BeamState:
    """State of a beam search of B streams; row b K + k is hypothesis k of stream b."""

    predicted: Tensor  # (B K, J)
    state: State
    scores: Tensor  # (B, K), relative to ``settled``; -inf for no hypothesis
    tokens: list[list[tuple[int, ...]]]
    frames: list[list[tuple[int, ...]]]
    settled: list[float]  # score of each stream up to the last commit
    time: int = 0


class BeamSearch(Search):
    """Time-synchronous beam search; in every frame, hypotheses of equal tokens are merged."""

    def __init__(self, model: Any, beam_size: int = 4):
        super().__init__(model)
        if beam_size < 1:
            raise UserError(f"beam_size must be at least 1, not {beam_size}")
        self.beam = min(beam_size, self.predictor.odim)

    def start(self, batch: int, device: torch.device | str = "cpu") -> BeamState:
        predicted, state = self._start(batch * self.beam, torch.device(device))
        scores = torch.full((batch, self.beam), -math.inf, device=device)
        scores[:, 0] = 0.0
        tokens: list[list[tuple[int, ...]]] = [[()] * self.beam for _ in range(batch)]
        frames = [list(row) for row in tokens]
        return BeamState(predicted, state, scores, tokens, frames, [0.0] * batch)

    @torch.no_grad()
    def advance(self, encoded: Tensor, lengths: Tensor, state: BeamState) -> BeamState:
        projected = self.joiner.lin_enc(encoded)
        counts = lengths.tolist()
        for t in range(encoded.shape[1]):
            inside = [t < count for count in counts]
            if not any(inside):
                break
            self._frame(projected[:, t], inside, state)
            state.time += 1
        state.time += encoded.shape[1] - min(encoded.shape[1], max(counts, default=0))
        return state

    def _frame(self, projected: Tensor, inside: list[bool], state: BeamState) -> None:
        """Extend every hypothesis by blank or a token; keep the best K of each stream."""
        batch, beam = state.scores.shape
        rows = projected.repeat_interleave(beam, 0)
        scores = self.logits(rows, state.predicted).log_softmax(-1).view(batch, beam, -1)
        scores = scores + state.scores.unsqueeze(2)
        width = scores.shape[2]
        # Twice as many as are kept, since some will be merged.
        best = scores.flatten(1).topk(min(2 * beam, beam * width), dim=1)
        parents, labels = best.indices // width, best.indices % width
        kept = _merge(best.values, parents, labels, self.blank, inside, state)
        device = scores.device
        state.scores = torch.tensor([[k.score for k in row] for row in kept], device=device)
        state.tokens = [[k.tokens for k in row] for row in kept]
        state.frames = [[k.frames for k in row] for row in kept]
        source = [b * beam + k.parent for b, row in enumerate(kept) for k in row]
        index = torch.tensor(source, device=device)
        labels_kept = torch.tensor([k.label for row in kept for k in row], device=device)
        predicted, inner = state.predicted[index], _map(lambda part: part[:, index], state.state)
        emits = (labels_kept != self.blank).unsqueeze(1)
        if bool(emits.any()):
            new, after = self._step(labels_kept, inner)
            predicted = torch.where(emits, new, predicted)
            inner = _map(lambda one, other: torch.where(emits, one, other), after, inner)
        state.predicted, state.state = predicted, inner

    def commit(self, state: BeamState) -> list[Hypothesis]:
        """Remove and return the tokens with which all hypotheses of a stream begin.

        Hypotheses may disagree on an old token for ever. A hypothesis therefore keeps at most
        ``OPEN_TOKENS`` other tokens: beyond that the best one decides its oldest tokens, and
        hypotheses that begin differently, or are still longer, are dropped. The best score is
        subtracted from all: in float32, scores of a long stream would become equal.
        """
        committed = []
        for row, best in enumerate(self.results(state)):
            scores = state.scores[row].tolist()
            alive = [t for t, s in zip(state.tokens[row], scores, strict=True) if s > -math.inf]
            size = _settled(alive, best.tokens)
            committed.append(Hypothesis(best.tokens[:size], best.score, best.frames[:size]))
            for k, tokens in enumerate(state.tokens[row]):
                if tokens[:size] != best.tokens[:size] or len(tokens) - size > OPEN_TOKENS:
                    state.scores[row, k] = -math.inf
                    state.tokens[row][k] = state.frames[row][k] = ()
            for part in (state.tokens, state.frames):
                part[row] = [t[size:] for t in part[row]]
            state.scores[row] -= best.score - state.settled[row]
            state.settled[row] = best.score
        return committed

    def results(self, state: BeamState) -> list[Hypothesis]:
        found = []
        for row, scores in enumerate(state.scores.tolist()):
            k = max(range(len(scores)), key=scores.__getitem__)
            score = state.settled[row] + scores[k]
            found.append(Hypothesis(state.tokens[row][k], score, state.frames[row][k]))
        return found


@dataclass
class _Candidate:
    tokens: tuple[int, ...]
    frames: tuple[int, ...]
    score: float
    parent: int
    label: int


def _merge(
    scores: Tensor,
    parents: Tensor,
    labels: Tensor,
    blank: int,
    inside: Sequence[bool],
    state: BeamState,
) -> list[list[_Candidate]]:
    """Merge candidates with equal tokens; keep the best K of each stream."""
    beam = state.scores.shape[1]
    old = state.scores.tolist()
    kept = []
    columns = (scores.tolist(), parents.tolist(), labels.tolist())
    for row, (values, origins, symbols) in enumerate(zip(*columns, strict=True)):
        if not inside[row]:  # the stream has ended: nothing changes
            known = zip(state.tokens[row], state.frames[row], old[row], strict=True)
            kept.append([_Candidate(*k, parent, blank) for parent, k in enumerate(known)])
            continue
        found: dict[tuple[int, ...], _Candidate] = {}
        for value, parent, label in zip(values, origins, symbols, strict=True):
            tokens, frames = state.tokens[row][parent], state.frames[row][parent]
            if label != blank:
                tokens, frames = (*tokens, label), (*frames, state.time)
            same = found.get(tokens)
            if same is None:
                found[tokens] = _Candidate(tokens, frames, value, parent, label)
            elif value > -math.inf:
                high, low = max(same.score, value), min(same.score, value)
                same.score = high + math.log1p(math.exp(low - high))
        best = sorted(found.values(), key=lambda c: -c.score)[:beam]
        filler = _Candidate(best[0].tokens, best[0].frames, -math.inf, best[0].parent, blank)
        kept.append(best + [filler] * (beam - len(best)))
    return kept


def _settled(alive: Sequence[tuple[int, ...]], best: tuple[int, ...]) -> int:
    """Return how many tokens of the best hypothesis are certain."""
    size = len(_common_prefix(alive))
    longest = max(len(tokens) for tokens in alive)
    if longest - size <= OPEN_TOKENS:
        return size
    return min(len(best), longest - OPEN_TOKENS)


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest common beginning of ``sequences``."""
    low, high = min(sequences), max(sequences)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:same]
