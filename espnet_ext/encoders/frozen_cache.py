"""What the frozen part of an encoder gives, kept in memory while a training lasts.

A frozen part gives an utterance the same in every epoch: a probe's training is as cheap as that
of its head once every utterance was seen. The memory belongs to the process, so that trainings of
a grid that a process does one after the other share it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

_GB = 1e9
_training: ContextVar[bool] = ContextVar("training", default=False)

# (speech (batch, samples), samples (batch,)) to (output (batch, time, width), frames (batch,))
type Part = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Inside, frozen parts are remembered: for training, which comes back to its utterances."""
    token = _training.set(True)
    try:
        yield
    finally:
        _training.reset(token)


class Memory:
    """Outputs of frozen parts, by part and by an utterance's samples."""

    def __init__(self) -> None:
        self.parts: dict[Hashable, dict[bytes, Tensor]] = {}  # the one last used is the last
        self.size = 0  # bytes

    def __call__(
        self, name: Hashable, part: Part, speech: Tensor, lengths: Tensor, limit_gb: float
    ) -> tuple[Tensor, Tensor]:
        """Output of ``part``, from memory where that is known.

        What is unknown is computed alone, not in its batch, so that it does not depend on which
        batch came first: a killed training goes on to the same result.

        Args:
            name: of the part; whatever decides what it computes.
            part: the part.
            speech: (batch, samples).
            lengths: (batch,), samples.
            limit_gb: how large the memory may get. Parts that were used least recently are
                forgotten first; what then does not fit is computed every time.

        Returns:
            Output (batch, time, width), zero beyond an utterance's end, and frames (batch,).
        """
        known = self.parts[name] = self.parts.pop(name, {})
        rows = []
        for row, length in zip(speech, lengths.tolist(), strict=True):
            samples = row[:length]
            key = hashlib.blake2b(samples.cpu().numpy().tobytes(), digest_size=16).digest()
            if key not in known:
                output, frames = part(samples.unsqueeze(0), lengths.new_tensor([length]))
                found = output[0, : int(frames[0])].cpu()
                if not self._has_room(found.nbytes, limit_gb):
                    rows.append(found)
                    continue
                known[key] = found.clone()  # not a view of what holds more
                self.size += found.nbytes
            rows.append(known[key])
        frames = lengths.new_tensor([len(row) for row in rows])
        return pad_sequence(rows, batch_first=True).to(speech.device), frames

    def _has_room(self, needed: int, limit_gb: float) -> bool:
        """Make room by forgetting other parts; say whether there is enough."""
        while self.size + needed > limit_gb * _GB and len(self.parts) > 1:
            oldest = self.parts.pop(next(iter(self.parts)))
            self.size -= sum(found.nbytes for found in oldest.values())
        return self.size + needed <= limit_gb * _GB


_memory = Memory()


def remembered(
    name: Callable[[], tuple[Hashable, ...]],
    part: Part,
    speech: Tensor,
    lengths: Tensor,
    limit_gb: float,
) -> tuple[Tensor, Tensor]:
    """``part(speech, lengths)``, while a training lasts from memory; see ``Memory``.

    ``name`` is called for the part's name if that is needed.
    """
    if not _training.get() or limit_gb == 0:
        return part(speech, lengths)
    device = speech.device.type
    # Autocast computes in another type; ESPnet validates without it.
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _memory((*name(), device, cast), part, speech, lengths, limit_gb)


def digest(module: nn.Module) -> str:
    """A digest of what a module is and of all its tensors."""
    state = hashlib.blake2b(str(module).encode(), digest_size=16)
    for key, value in module.state_dict().items():
        state.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
