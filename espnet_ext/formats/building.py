"""Models built from the config of a file: whatever it says, the error is one line."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_ext.errors import UserError, one_line

# A model may have this many times the numbers of its file while it is built, and some more: layers
# that share a base are built as a training has them.
_RATIO, _MORE = 32, 1_000_000
_MOST_TENSORS = 30_000  # of any model: many hundreds of layers


@contextlib.contextmanager
def building(state: Mapping[str, Tensor], config: Path) -> Iterator[None]:
    """Build a model in the block, by a config that was read from a file.

    Args:
        state: the tensors that the model will be filled with; they bound its size.
        config: the file, for messages.

    Raises:
        UserError: the block raises anything, or its model is many times as large as the state.
    """
    most = _RATIO * sum(tensor.numel() for tensor in state.values()) + _MORE
    try:
        with bounded(most, f"{config}: its model is many times as large as its weights"):
            yield
    except UserError:
        raise
    except Exception as error:  # any type, for a wrong value
        raise UserError(f"{config}: the model does not build: {one_line(error)}") from None


@contextlib.contextmanager
def bounded(most: int, reason: str) -> Iterator[None]:
    """Stop the building of a model in the block before it has over ``most`` numbers.

    Raises:
        UserError: with this reason; also where it has very many tensors.
    """
    numbers = tensors = 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal numbers, tensors
        tensors += 1
        numbers += 0 if parameter is None else parameter.numel()
        if numbers > most or tensors > _MOST_TENSORS:
            raise UserError(reason)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
