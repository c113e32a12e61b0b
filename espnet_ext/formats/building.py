"""Models built from the config of a file: whatever it says, the error is one line."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_ext.errors import UserError, one_line

# A model may have this many times the numbers of its file while it is built, and some more: layers
# that share a base are built as a training has them, and what a mimic replaces is built first (of
# Whisper large 114 times what stays).
_RATIO, SMALL_MODEL = 128, 1_000_000
_MOST_TENSORS = 30_000  # of any model: many hundreds of layers
_reading = ContextVar("_reading", default=0)  # models that are being read from files of their own


@contextlib.contextmanager
def building(state: Mapping[str, Tensor], config: Path) -> Iterator[None]:
    """Build a model in the block, by a config that was read from a file.

    What the block reads ``from_own_file`` is not counted.

    Args:
        state: the tensors that the model will be filled with; they bound its size.
        config: the file, for messages.

    Raises:
        UserError: the block raises anything, or its model is many times as large as the state.
    """
    most = _RATIO * sum(tensor.numel() for tensor in state.values()) + SMALL_MODEL
    try:
        reason = f"{config}: its model is many times as large as its weights"
        with bounded(most, reason, read=False):
            yield
    except UserError:
        raise
    except Exception as error:  # any type, for a wrong value
        raise UserError(f"{config}: the model does not build: {one_line(error)}") from None


@contextlib.contextmanager
def from_own_file() -> Iterator[None]:
    """Read a model in the block whose size a file of its own bounds, not what it is read for.

    So a mimic, which keeps a tenth of a pretrained model, can be built from the whole of it.
    """
    token = _reading.set(_reading.get() + 1)
    try:
        yield
    finally:
        _reading.reset(token)


@contextlib.contextmanager
def bounded(most: int, reason: str, read: bool = True) -> Iterator[None]:
    """Stop the building of a model in the block before it has over ``most`` numbers.

    Args:
        most: numbers, whatever they are for.
        reason: of the error.
        read: count what the block reads ``from_own_file`` too.

    Raises:
        UserError: with this reason; also where it has very many tensors.
    """
    numbers = tensors = 0
    depth = _reading.get()

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal numbers, tensors
        if not read and _reading.get() > depth:
            return
        tensors += 1
        numbers += 0 if parameter is None else parameter.numel()
        if numbers > most or tensors > _MOST_TENSORS:
            raise UserError(reason)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
