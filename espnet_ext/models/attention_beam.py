"""Beam search of a Whisper decoder: batches, cached keys and values, and an end to loops.

A text is scored by the sum of the log-probabilities of its tokens and of eos, as ESPnet's beam
search scores it by attention alone. ESPnet's takes one utterance at a time, this one several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from espnet_ext.methods.tensors import frame_mask
from espnet_ext.models.attention_search import loop
from espnet_ext.models.whisper_decoder import WhisperDecoder


class Text(NamedTuple):
    """Token ids, and the sum of their log-probabilities without and with that of eos."""

    tokens: list[int]
    score: float
    whole: float


@dataclass
class _Utterance:
    """The texts of an utterance.

    Attributes:
        most: tokens that one may have.
        live: those that go on, the best first, all of one length.
        best: the best of those that have ended.
    """

    most: int
    live: list[Text] = field(default_factory=lambda: [Text([], 0.0, 0.0)])
    best: Text | None = None

    @property
    def ended(self) -> bool:
        """True if nothing that goes on can be better than what has ended: scores only fall."""
        return not self.live or (self.best is not None and self.best.whole >= self.live[0].score)

    def extend(self, log_probs: Tensor, end: int, size: int) -> list[int]:
        """Replace ``live`` by its best extensions; return the place of what each extends.

        Args:
            log_probs: (n, V), of the tokens that follow each of ``live``.
            end: id of eos, all that may follow a text of ``most`` tokens.
            size: extensions, with those that end.
        """
        before, parents, self.live = self.live, [], []
        if len(before[0].tokens) >= self.most:
            for text, last in zip(before, log_probs[:, end].tolist(), strict=True):
                self._end(Text(text.tokens, text.score, text.score + last))
            return []
        scores = log_probs + log_probs.new_tensor([text.score for text in before]).unsqueeze(1)
        values, places = scores.flatten().topk(min(size, scores.numel()))
        for score, place in zip(values.tolist(), places.tolist(), strict=True):
            parent, token = divmod(place, scores.shape[1])
            tokens = [*before[parent].tokens, token]
            if token == end:
                self._end(Text(before[parent].tokens, before[parent].score, score))
            elif repeated := loop(tokens):
                self._end(Text(tokens[:-repeated], score, score))
            else:
                self.live.append(Text(tokens, score, score))
                parents.append(parent)
        return parents

    def _end(self, text: Text) -> None:
        if self.best is None or text.whole > self.best.whole:
            self.best = text


@torch.no_grad()
def attention_beam(
    decoder: WhisperDecoder, encoded: Tensor, frames: Tensor, most: Sequence[int], size: int
) -> list[Text]:
    """Return the most probable text that a beam finds of each utterance.

    A text ends with eos, which is all that may follow at an utterance's number of tokens, or where
    it repeats itself; of a repetition one is kept. Utterances that have ended leave the batch.

    Args:
        decoder: in evaluation mode.
        encoded: encoder output (B, T, D).
        frames: of each utterance (B,).
        most: tokens of each utterance, without eos.
        size: texts of an utterance that are extended at each step.
    """
    found = going = [_Utterance(count) for count in most]
    inside = frame_mask(frames, encoded.shape[1], encoded.device)
    tokens, past = decoder.prompts(encoded, inside), None
    count = 1  # texts of each utterance: one at first, later ``size``; its frames are kept once
    while going:
        logits, past = decoder.step(tokens, encoded, inside, past)
        parts = logits.log_softmax(-1).split(count)
        rows: list[int] = []
        ids: list[int] = []
        for first, one, part in zip(range(0, len(logits), count), going, parts, strict=True):
            parents = one.extend(part[: len(one.live)], decoder.end, size)
            if not one.ended:  # where fewer go on, rows at its end hold what nobody reads
                spare = size - len(parents)
                rows += [first + parent for parent in (*parents, *[0] * spare)]
                ids += [*(text.tokens[-1] for text in one.live), *[decoder.end] * spare]
        chosen = torch.tensor(rows, dtype=torch.long, device=encoded.device)
        tokens = torch.tensor(ids, dtype=tokens.dtype, device=encoded.device).unsqueeze(1)
        past.self_attention_cache.batch_select_indices(chosen)
        kept = [place for place, one in enumerate(going) if not one.ended]
        if len(kept) < len(going):
            places = torch.tensor(kept, dtype=torch.long, device=encoded.device)
            past.cross_attention_cache.batch_select_indices(places)
            encoded, inside = encoded[places], inside[places]
        going, count = [going[place] for place in kept], size
    return [one.best or Text([], 0.0, 0.0) for one in found]
