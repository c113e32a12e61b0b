"""Greedy search of a Whisper decoder: batches, cached keys and values, and an end to loops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_ext.methods.tensors import frame_mask
from espnet_ext.models.whisper_decoder import WhisperDecoder

_LONGEST = 10  # tokens of a phrase that is looked for
_TIMES = 4  # that a phrase may not come one after another ...
_TOKENS = 12  # ... if that makes this many tokens: people do say "no no no no"


@torch.no_grad()
def attention_greedy(
    decoder: WhisperDecoder,
    encoded: Tensor,
    frames: Tensor,
    most: Sequence[int],
    known: Sequence[int] = (),
    scores: list[float] | None = None,
) -> list[list[int]]:
    """Return the ids of the most likely next tokens of each utterance, one after another.

    An utterance ends with eos, at its number of tokens, or where it repeats itself; of a
    repetition one is kept. Those that have ended leave the batch.

    Args:
        decoder: in evaluation mode.
        encoded: encoder output (B, T, D).
        frames: of each utterance (B,).
        most: tokens of each utterance, without eos.
        known: tokens that every text begins with.
        scores: if given, the log-probability of each utterance's tokens is appended, without
            those of ``known`` and eos.
    """
    found: list[list[int]] = [list(known) for _ in most]
    rows = list(range(len(most)))
    inside = frame_mask(frames, encoded.shape[1], encoded.device)
    tokens = decoder.prompts(encoded, inside)
    start = torch.tensor(known, dtype=tokens.dtype, device=tokens.device)
    tokens = torch.cat([tokens, start.repeat(len(most), 1)], dim=1)
    past = None
    sums = [0.0] * len(most)
    while rows:
        logits, past = decoder.step(tokens, encoded, inside, past)
        best = logits.argmax(-1)
        certain = logits.log_softmax(-1).amax(-1).tolist() if scores is not None else ()
        for row, token, score in zip(rows, best.tolist(), certain, strict=False):
            sums[row] += score if token != decoder.end else 0.0
        kept = [
            place
            for place, (row, token) in enumerate(zip(rows, best.tolist(), strict=True))
            if token != decoder.end and _goes_on(found[row], token, most[row])
        ]
        tokens = best[kept].unsqueeze(1)
        if kept and len(kept) < len(rows):
            places = torch.tensor(kept, device=encoded.device)
            past.batch_select_indices(places)
            encoded, inside = encoded[places], inside[places]
        rows = [rows[place] for place in kept]
    if scores is not None:
        scores += sums
    return found


def _goes_on(found: list[int], token: int, most: int) -> bool:
    """Add a token to a text; return whether another one may follow."""
    if len(found) < most:
        found.append(token)
    if repeated := loop(found):
        del found[-repeated:]
        return False
    return len(found) < most


def loop(tokens: Sequence[int]) -> int:
    """How many tokens at the end only repeat the phrase before them; 0 if it is no loop."""
    for size in range(1, _LONGEST + 1):
        times = max(_TIMES, -(-_TOKENS // size))
        tail = tokens[-size * times :]
        if len(tail) == size * times and tail[size:] == tail[:-size]:
            return size * (times - 1)
    return 0
