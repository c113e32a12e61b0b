"""Outputs of the frozen part of an encoder, kept in memory while a training lasts.

A frozen part gives the same output for an utterance in every epoch. Once every utterance has been
seen, training a probe costs no more than training its head.
"""

import hashlib
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

_GB = 1e9

# (speech (batch, samples), samples (batch,)) to (output (batch, time, width), frames (batch,))
type Part = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FrozenCache:
    """Outputs of frozen parts, by part and by the samples of an utterance.

    Trainings that run one after another in a process can share a cache.
    """

    def __init__(self) -> None:
        self.parts: dict[Hashable, dict[bytes, Tensor]] = {}  # least recently used first
        self.size = 0  # bytes

    def __call__(
        self, key: Hashable, part: Part, speech: Tensor, lengths: Tensor, limit_gb: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``part(speech, lengths)``, from the cache where it is known.

        The output is zero after the end of an utterance. An unknown utterance is computed alone,
        not in its batch. Its output thus does not depend on which batch came first, and a resumed
        training reaches the same result.

        Args:
            key: everything that decides what the part computes.
            part, speech, lengths: see ``Part``.
            limit_gb: largest size of the cache. The parts that were used least recently are
                dropped first; an output that still does not fit is computed every time.
        """
        known = self.parts[key] = self.parts.pop(key, {})
        rows = []
        for row, length in zip(speech, lengths.tolist(), strict=True):
            samples = row[:length]
            name = hashlib.blake2b(samples.cpu().numpy().tobytes(), digest_size=16).digest()
            found = known.get(name)
            if found is None:
                output, frames = part(samples.unsqueeze(0), lengths.new_tensor([length]))
                found = output[0, : int(frames[0])].cpu()
                if self._has_room(found.nbytes, limit_gb):
                    found = known[name] = found.clone()  # not a view of a larger tensor
                    self.size += found.nbytes
            rows.append(found)
        frames = lengths.new_tensor([len(row) for row in rows])
        return pad_sequence(rows, batch_first=True).to(speech.device), frames

    def _has_room(self, needed: int, limit_gb: float) -> bool:
        """Drop other parts until there is room; return whether there is enough."""
        while self.size + needed > limit_gb * _GB and len(self.parts) > 1:
            oldest = self.parts.pop(next(iter(self.parts)))
            self.size -= sum(found.nbytes for found in oldest.values())
        return self.size + needed <= limit_gb * _GB


def computation_of(device: torch.device) -> tuple[Hashable, ...]:
    """Device and autocast type, which a key needs: ESPnet trains under autocast, but validates
    without it."""
    kind = device.type
    return kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def digest(module: nn.Module) -> str:
    """Return a digest of a module's structure and all its tensors."""
    state = hashlib.blake2b(str(module).encode(), digest_size=16)
    for key, value in module.state_dict().items():
        state.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
